# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import gan_loss
from tests import _cases

LOGITS = [-2.0, 0.5, 3.0]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# One logit's loss, by (kind, real, generator).
TERMS = {
    ("bce", True, False): lambda x: -math.log(sigmoid(x)),
    ("bce", False, False): lambda x: -math.log(1 - sigmoid(x)),
    ("bce", True, True): lambda x: -math.log(sigmoid(x)),
    ("hinge", True, False): lambda x: max(0.0, 1 - x),
    ("hinge", False, False): lambda x: max(0.0, 1 + x),
    ("hinge", True, True): lambda x: -x,
    ("wasserstein", True, False): lambda x: -x,
    ("wasserstein", False, False): lambda x: x,
    ("wasserstein", True, True): lambda x: -x,
    ("lsgan", True, False): lambda x: (x - 1) ** 2,
    ("lsgan", False, False): lambda x: x**2,
    ("lsgan", True, True): lambda x: (x - 1) ** 2,
}


@pytest.mark.parametrize(("kind", "real", "generator"), TERMS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_is_the_mean_of_its_terms(backend, kind, real, generator):
    term = TERMS[kind, real, generator]
    with _backend.use_backend(backend):
        loss = gan_loss(torch.tensor(LOGITS), real, kind, generator=generator)
    torch.testing.assert_close(loss, torch.tensor(sum(map(term, LOGITS)) / len(LOGITS)))


@pytest.mark.parametrize(("kind", "real", "generator"), TERMS)
def test_gradients(kind, real, generator):
    logits = _cases.randn((7,), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gan_loss(x, real, kind, generator=generator), logits)


@pytest.mark.parametrize("kind", ["bce", "hinge", "wasserstein", "lsgan"])
def test_autocast_computes_in_float32(kind):
    logits = _cases.randn((50,)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = gan_loss(logits, True, kind)
    torch.testing.assert_close(loss, gan_loss(logits.float(), True, kind))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (
            (torch.zeros(2), True, "gan"),
            {},
            ValueError,
            "gan_loss: kind must be one of 'bce', 'hinge', 'wasserstein', 'lsgan'",
        ),
        ((torch.zeros(2), False), {"generator": True}, ValueError, "real must be True with generator=True"),
        ((torch.zeros(2), torch.ones(2)), {}, TypeError, "gan_loss: real must be True or False, got Tensor"),
        ((torch.zeros(2), 0.9, "hinge"), {}, TypeError, "gan_loss: real must be True or False, got float"),
        (
            (torch.zeros(2), True),
            {"generator": torch.Generator()},
            TypeError,
            "generator must be True or False, got Gen",
        ),
        ((torch.zeros(2).long(), True), {}, TypeError, "logits must be floating point, got torch.int64"),
    ],
)
def test_bad_input_gets_one_clear_line(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        gan_loss(*args, **kwargs)
