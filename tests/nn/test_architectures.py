# SPDX-License-Identifier: MIT
"""`fuse` on generators of the literature, as public repositories write them: the same numbers, state and copies."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import genimg_fast
from tests import _cases
from tests.architectures import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return ARCHITECTURES[request.param]


def fused_and_plain(architecture, dtype=torch.float64) -> tuple[nn.Module, nn.Module]:
    plain = architecture.build().to(dtype)
    for module in plain.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # with numbers that would show if they were left out
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    fused = architecture.build().to(dtype)
    fused.load_state_dict(plain.state_dict(), strict=True)
    genimg_fast.fuse(fused)
    return fused, plain


def results(model: nn.Module, input: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs, gradients and buffers of one pass."""
    torch.manual_seed(1)  # for what the model itself draws
    input = input.clone().requires_grad_()
    outputs = model(input)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, [input, *parameters], allow_unused=True)
    return {
        **{f"output {i}": output.detach() for i, output in enumerate(outputs)},
        **{f"gradient of {n}": g for n, g in zip(("input", *names), grads, strict=True) if g is not None},
        **dict(model.named_buffers()),
    }


def test_report(architecture):
    report = genimg_fast.fuse(architecture.build())
    assert Counter(row.kind for row in report.fused) == architecture.fused
    assert Counter(row.reason for row in report.not_fused) == architecture.reasons


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_same_numbers(architecture, mode, backend):
    fused, plain = fused_and_plain(architecture)
    x = _cases.randn(architecture.input_shape, torch.float64)
    expected = results(plain.train(mode == "train"), x)
    with genimg_fast.use_backend(backend):
        actual = results(fused.train(mode == "train"), x)
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_same_images_in_float32(architecture):
    """With the kernels that are for float32 alone; twice, since the second pass may repeat the first."""
    fused, plain = (model.eval() for model in fused_and_plain(architecture, torch.float32))
    x = _cases.randn(architecture.input_shape)
    torch_result, exact = plain(x), copy.deepcopy(plain).double()(x.double())
    for _ in range(2):
        with genimg_fast.use_backend("native"):
            actual = fused(x)
        for a, e, t in zip(*(o if isinstance(o, tuple) else (o,) for o in (actual, exact, torch_result)), strict=True):
            _cases.assert_accurate(a, e, t, factor=_cases.ERROR_FACTOR_WINOGRAD)


def copies(fused: nn.Module) -> list[nn.Module]:
    """By copy.deepcopy and pickle, but for those that PyTorch itself refuses."""
    normalised = [m for m in fused.modules() if m._forward_pre_hooks]  # by torch.nn.utils.weight_norm or spectral_norm
    if any(parametrize.is_parametrized(m) for m in fused.modules()) or normalised:
        return []
    return [copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))]


def test_state_copies_and_way_back(architecture):
    fused, plain = fused_and_plain(architecture)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=0, atol=0)
    plain.load_state_dict(fused.state_dict(), strict=True)
    x = _cases.randn(architecture.input_shape, torch.float64)
    expected = results(plain.eval(), x)
    for twin in copies(fused):
        assert [type(m) for m in twin.modules()] == [type(m) for m in fused.modules()]
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in fused.parameters()}
        torch.testing.assert_close(results(twin.eval(), x), expected)
    assert genimg_fast.unfuse(fused) is fused
    assert [type(m).__name__ for m in fused.modules()] == [type(m).__name__ for m in plain.modules()]
