# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from genimg_fast import _backend, functional
from genimg_fast.nn import BCELoss, BCEWithLogitsLoss, ELBOLoss, GaussianKLLoss
from tests import _cases

X, TARGET = _cases.randn((4, 3), seed=1), _cases.randn((4, 3), seed=2).sigmoid()
WEIGHT, POSITIVE = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([3.0, 0.2, 1.0])
MU, LOGVAR = _cases.randn((4, 2), seed=3), _cases.randn((4, 2), seed=4)

DROP_INS = [
    (BCELoss, nn.BCELoss, {}),
    (BCELoss, nn.BCELoss, {"weight": WEIGHT, "reduction": "sum"}),
    (BCELoss, nn.BCELoss, {"reduction": "none"}),
    (BCEWithLogitsLoss, nn.BCEWithLogitsLoss, {}),
    (BCEWithLogitsLoss, nn.BCEWithLogitsLoss, {"weight": WEIGHT, "pos_weight": POSITIVE, "reduction": "sum"}),
    (BCEWithLogitsLoss, nn.BCEWithLogitsLoss, {"pos_weight": POSITIVE, "reduction": "none"}),
]


@pytest.mark.parametrize(("ours", "torchs", "arguments"), DROP_INS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_takes_the_place_of_its_torch_module(backend, ours, torchs, arguments):
    def run(module):
        x = X.sigmoid().requires_grad_()
        loss = module(x, TARGET)
        return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    module, expected = ours(**arguments), torchs(**arguments)
    assert isinstance(module, torchs)
    assert repr(module) == repr(expected)
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    with _backend.use_backend(backend):
        torch.testing.assert_close(run(module), run(expected))


@pytest.mark.parametrize(("ours", "torchs", "arguments"), DROP_INS)
def test_takes_over_an_instance_by_its_class(ours, torchs, arguments):
    module = torchs(**arguments)
    expected = module(X.sigmoid(), TARGET)
    copied = copy.deepcopy(module)
    copied.__class__ = ours
    with _backend.record_decisions(heed_speed=False) as decisions:
        torch.testing.assert_close(copied(X.sigmoid(), TARGET), expected)
    assert [d.native for d in decisions] == [True]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool])
@pytest.mark.parametrize(
    ("ours", "torchs", "argument"),
    [
        (BCELoss, nn.BCELoss, "weight"),
        *((BCEWithLogitsLoss, nn.BCEWithLogitsLoss, a) for a in ("weight", "pos_weight")),
    ],
)
def test_weights_of_another_dtype_are_promoted_as_by_torch(ours, torchs, argument, dtype):
    def run(module):
        x = X.sigmoid().requires_grad_()
        loss = module(x, TARGET)
        return loss, torch.autograd.grad(loss, x)[0]

    weight = torch.tensor([0, 1, 3]).to(dtype)
    if argument == "pos_weight" and dtype is torch.bool:  # of which torch subtracts one
        with pytest.raises(RuntimeError):
            run(torchs(pos_weight=weight))
        return
    torch.testing.assert_close(run(ours(**{argument: weight})), run(torchs(**{argument: weight})))


@pytest.mark.parametrize(("ours", "count"), [(BCELoss, 1 << 12), (BCEWithLogitsLoss, 1 << 14)])
@pytest.mark.parametrize("grad", [True, False])
def test_few_elements_are_left_to_torch(ours, count, grad):
    count = count if grad else count >> 2
    for n in (count - 1, count):
        with _backend.record_decisions() as decisions:
            ours()(torch.full((n,), 0.3).requires_grad_(grad), torch.full((n,), 0.6))
        assert [d.native for d in decisions] == [n == count]
    with _backend.record_decisions() as decisions:
        ours()(torch.full((8, 1), 0.3).requires_grad_(grad), torch.full((8, 1), 0.6))
    assert decisions[0].reason == f"fewer than {count} elements, for which calling PyTorch's own operators is quicker"


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "batchmean"])
def test_gaussian_kl_loss(reduction):
    module = GaussianKLLoss(reduction)
    assert repr(module) == f"GaussianKLLoss(reduction='{reduction}')"
    assert torch.equal(module(MU, LOGVAR), functional.gaussian_kl_loss(MU, LOGVAR, reduction))


def test_elbo_loss():
    module = ELBOLoss("mse", beta=0.5, reduction="mean")
    assert repr(module) == "ELBOLoss(reconstruction='mse', beta=0.5, reduction='mean')"
    expected = functional.elbo_loss(X, TARGET, MU, LOGVAR, reconstruction="mse", beta=0.5, reduction="mean")
    assert module(X, TARGET, MU, LOGVAR) == expected
    assert repr(ELBOLoss()) == "ELBOLoss(reconstruction='bce_with_logits', beta=1.0, reduction='batchmean')"
    assert ELBOLoss()(X, TARGET, MU, LOGVAR) == functional.elbo_loss(X, TARGET, MU, LOGVAR)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianKLLoss("avg"), "GaussianKLLoss: reduction must be one of 'none', 'mean', 'sum', 'batchmean'"),
        (lambda: ELBOLoss(reduction="none"), "ELBOLoss: reduction must be one of 'batchmean', 'sum', 'mean'"),
        (lambda: ELBOLoss("l1"), "ELBOLoss: reconstruction must be one of 'bce_with_logits', 'bce', 'mse'"),
    ],
)
def test_bad_arguments_are_told_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()
