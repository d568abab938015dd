# SPDX-License-Identifier: MIT
"""The losses keep the gradient that they made in the forward pass: what that must not break, whatever autograd asks."""

from __future__ import annotations

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import bce_loss, bce_with_logits_loss, elbo_loss
from tests import _cases

TARGET = _cases.randn((4, 6), seed=2).sigmoid()
MU, LOGVAR = _cases.randn((4, 2), seed=3), _cases.randn((4, 2), seed=4)

LOSSES = {
    "bce_loss": lambda x, target=TARGET: bce_loss(x, target),
    "bce_with_logits_loss": lambda x, target=TARGET: bce_with_logits_loss(x, target),
    "elbo_loss": lambda x, target=TARGET: elbo_loss(x, target, MU, LOGVAR)[0],
}
pytestmark = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(autouse=True)
def native():
    """Whatever is faster."""
    with _backend.use_backend("native"):
        yield


@pytest.fixture
def x():
    return _cases.randn((4, 6), seed=1).sigmoid().requires_grad_()


def expected_gradient(loss, x):
    with _backend.use_backend("reference"):
        return torch.autograd.grad(loss(x), x)[0]


def test_the_gradient_is_handed_over_and_not_copied(loss, x):
    seen = []
    copy = x.clone()
    copy.register_hook(lambda grad: seen.append(grad.data_ptr()))
    value = loss(copy)
    addresses = [t.data_ptr() for t in value.grad_fn.saved_tensors if t is not None]
    value.backward()
    assert seen[0] in addresses


def test_the_graph_can_be_used_again_after_its_gradients_were_written_into(loss, x):
    value, expected = loss(x), expected_gradient(loss, x)
    for _ in range(3):
        (grad,) = torch.autograd.grad(value, x, retain_graph=True)
        torch.testing.assert_close(grad, expected)
        grad.zero_()


def test_accumulation_over_repeated_backward_passes(loss, x):
    value, expected = loss(x), expected_gradient(loss, x)
    for count in (1, 2, 3):
        value.backward(retain_graph=count < 3)
        torch.testing.assert_close(x.grad, count * expected)


def test_accumulation_over_two_graphs(loss, x):
    expected = expected_gradient(loss, x)
    loss(x).backward()
    loss(x).backward()
    torch.testing.assert_close(x.grad, 2 * expected)


def test_the_same_input_used_twice_in_a_graph(loss, x):
    expected = expected_gradient(loss, x)
    (loss(x) + loss(x) + x.sum()).backward()
    torch.testing.assert_close(x.grad, 2 * expected + 1)


def test_batched_upstream_gradients(loss, x):
    (grads,) = torch.autograd.grad(loss(x), x, torch.tensor([1.0, 2.0]), is_grads_batched=True)
    torch.testing.assert_close(grads, torch.stack([expected_gradient(loss, x), 2 * expected_gradient(loss, x)]))


def test_gradient_through_vmap(loss, x):
    batch = torch.stack([x, x * 0.5]).detach()

    def total(batch):
        return torch.vmap(loss)(batch).sum() if loss is not LOSSES["elbo_loss"] else loss(batch[0]) + loss(batch[1])

    with_vmap = batch.clone().requires_grad_()
    total(with_vmap).backward()
    torch.testing.assert_close(
        with_vmap.grad, torch.stack([expected_gradient(loss, b.requires_grad_()) for b in batch])
    )


def test_nothing_is_made_without_grad(loss, x):
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        loss(x)
    assert all(event.self_cpu_memory_usage < x.nbytes for event in profile.events())


def test_target_that_requires_grad_goes_to_the_reference(loss, x):
    target = TARGET.clone().requires_grad_()
    with _backend.use_backend("auto"), _backend.record_decisions() as decisions:
        value = loss(x, target)
    assert decisions[0].reason == "target requires grad, and the kernels do not differentiate with respect to it"
    (grad,) = torch.autograd.grad(value, target)
    direction = _cases.randn((4, 6), torch.float64, seed=5)
    with torch.no_grad(), _backend.use_backend("reference"):
        ahead, behind = (
            (loss(x.double(), target.double() + h * direction) for h in (1e-4, -1e-4))
            if (loss is not LOSSES["elbo_loss"])
            else (
                elbo_loss(x.double(), target.double() + h * direction, MU.double(), LOGVAR.double())[0]
                for h in (1e-4, -1e-4)
            )
        )
    torch.testing.assert_close((grad.double() * direction).sum(), (ahead - behind) / 2e-4, rtol=1e-4, atol=1e-6)


def test_target_that_requires_grad_unseen_inside_vmap_is_an_error_and_not_a_zero(loss, x):
    target = torch.stack([TARGET, TARGET]).requires_grad_()
    value = torch.vmap(lambda t: loss(x, t))(target).sum()
    with pytest.raises(NotImplementedError, match="differentiable"):
        value.backward()
