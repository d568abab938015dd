# SPDX-License-Identifier: MIT
"""Arguments at the edge of what the functions take, on every device: no values, NaN, per-channel tensors that are views."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from genimg_fast import functional, use_backend
from tests import _cases

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_cuda)], autouse=True)
def device(request):
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # which the kernels want
    try:
        with use_backend("native"), torch.device(request.param):
            yield request.param
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return _cases.randn(shape, seed=seed).to(torch.empty(0).device)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_divergence_without_values(reduction):
    mu = torch.zeros(0, 4)
    z, kl = functional.reparameterize_with_kl(mu, mu, reduction)
    assert z.shape == mu.shape
    torch.testing.assert_close(kl, functional.gaussian_kl_loss(mu, mu, reduction), equal_nan=True)


VIEWS = {
    "expanded": lambda: torch.full((1,), 0.5).expand(8),
    "every other": lambda: (torch.arange(16) / 16 + 0.5)[::2],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_per_channel_tensors_that_are_views(transposed, dtype, training, view, device):
    if dtype is torch.float16 and device == "cpu":
        dtype = torch.float64
    x, of_channels = randn(2, 4, 8, 8).to(dtype), VIEWS[view]().to(dtype)
    weight = randn(*((4, 8) if transposed else (8, 4)), 4, 4, seed=1).to(dtype)
    run, convolve = (
        (functional.conv_transpose2d_bn_act, F.conv_transpose2d) if transposed else (functional.conv2d_bn_act, F.conv2d)
    )
    mean, var = (None, None) if training else (of_channels, of_channels)
    actual = run(x, weight, of_channels, mean, var, of_channels, of_channels, stride=2, padding=1, training=training)
    exact = [t.double() for t in (x, weight, of_channels)]
    mean, var = (None, None) if training else (exact[2], exact[2])
    raw = convolve(*exact, 2, 1)
    expected = F.batch_norm(raw, mean, var, exact[2].contiguous(), exact[2].contiguous(), training)
    tolerance = 1e-2 if device == "cuda" else 1e-4  # where float32 is multiplied as TF32
    torch.testing.assert_close(actual.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("convolved", [False, True])
def test_second_derivatives_of_an_empty_batch_are_zero(convolved):
    x, weight = torch.zeros(0, 3, 4, 4, requires_grad=True), torch.ones(3, requires_grad=True)
    if convolved:
        output = functional.conv2d_bn_act(x, randn(3, 3, 3, 3), None, None, None, weight, training=True)
    else:
        output = functional.batch_norm_act(x, None, None, weight, training=True)
    grads = torch.autograd.grad(output.sum(), (x, weight), create_graph=True)
    (second,) = torch.autograd.grad(sum(g.sum() for g in grads), weight, allow_unused=True, materialize_grads=True)
    assert second.tolist() == [0.0] * 3


def test_vmap_over_no_examples():
    x, weight = torch.zeros(0, 2, 3, 4, 4, requires_grad=True), randn(5, 3, 3, 3).requires_grad_()
    output = torch.vmap(lambda x: functional.conv2d_bn_act(x, weight))(x)
    assert output.shape == (0, 2, 5, 2, 2)
    grads = torch.autograd.grad(output.sum(), (x, weight))
    assert [g.shape for g in grads] == [x.shape, weight.shape]
    assert not grads[1].any()


def test_relu_of_nan_lets_its_gradient_pass():
    x = torch.tensor([[float("nan"), -1.0, 0.0, 1.0]], requires_grad=True)
    output = functional.batch_norm_act(x, torch.zeros(4), torch.ones(4), eps=0.0, activation="relu")
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.tolist() == torch.autograd.grad(F.relu(x).sum(), x)[0].tolist() == [[1.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize("convolved", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_relu_keeps_an_infinite_gradient_back(training, convolved):
    x, ones = randn(4, 3, 6, 6).requires_grad_(), torch.ones(3)
    mean, var = (None, None) if training else (torch.zeros(3), ones)
    if convolved:
        identity = torch.eye(3)[:, :, None, None]
        output = functional.conv2d_bn_act(x, identity, None, mean, var, ones, training=training, activation="relu")
    else:
        output = functional.batch_norm_act(x, mean, var, ones, training=training, activation="relu")
    kept_back = (output == 0).detach()
    grad_output = torch.where(kept_back, float("inf"), 1.0)
    (grad,) = torch.autograd.grad(output, x, grad_output)
    expected = F.relu(F.batch_norm(x, mean, var, ones, training=training))
    torch.testing.assert_close(grad, torch.autograd.grad(expected, x, grad_output)[0], atol=1e-3, rtol=1e-3)
    assert grad.isfinite().all()
    assert kept_back.any()


def test_relu_alone_keeps_an_infinite_gradient_back():
    x = randn(2, 3, 6, 6).requires_grad_()
    output = functional.conv2d_bn_act(x, torch.eye(3)[:, :, None, None], activation="relu")
    (grad,) = torch.autograd.grad(output, x, torch.where(output.detach() == 0, float("inf"), 1.0))
    assert grad.tolist() == (x > 0).float().tolist()


def test_second_derivative_of_bce_at_certain_probabilities():
    p, target = torch.tensor([1.0, 0.0, 1.0, 0.5] * 2000, requires_grad=True), torch.tensor([0.0, 1.0, 1.0, 0.5] * 2000)

    def second(loss) -> torch.Tensor:
        (grad,) = torch.autograd.grad(loss(p, target, reduction="sum"), p, create_graph=True)
        return torch.autograd.grad(grad.sum(), p)[0]

    torch.testing.assert_close(second(functional.bce_loss), second(F.binary_cross_entropy))
