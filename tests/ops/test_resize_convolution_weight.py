# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genimg_fast.ops import _packed
from genimg_fast.ops._memory_order import memory_format
from genimg_fast.ops.resize_convolution_weight import resize_convolution_weight, samples
from genimg_fast.reference import resize_convolution_weight as reference
from tests import _cases

# Around the sixteen input channels that are read together, and enough of both to keep two threads at work.
SHAPES = [(1, 1, 3, 3), (5, 3, 3, 3), (3, 15, 3, 3), (2, 17, 3, 3), (96, 80, 3, 3), (0, 4, 3, 3), (4, 0, 3, 3)]


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_reference_is_what_the_two_layers_are(padding):
    x, weight = _cases.randn((2, 3, 5, 4), torch.float64), _cases.randn((6, 3, 3, 3), torch.float64, 1)
    expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=padding)
    actual = F.conv_transpose2d(x, reference.resize_convolution_weight(weight), stride=2, padding=2 - padding)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype):
    exact, upstream = _cases.randn(shape, torch.float64), _cases.randn((shape[1], shape[0], 4, 4), torch.float64, 1)
    exact = exact.to(dtype).double().requires_grad_()
    expected = reference.resize_convolution_weight(exact)
    (expected_grad,) = torch.autograd.grad(expected, exact, upstream)
    for name, lay_out in _cases.layouts(shape):
        weight = lay_out(exact.detach().to(dtype)).requires_grad_()
        actual = resize_convolution_weight(weight)
        (grad,) = torch.autograd.grad(actual, weight, lay_out_upstream(name, upstream.to(dtype)))
        # sums of at most four values each
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps, msg=name)
        torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=32 * torch.finfo(dtype).eps, msg=name)
        assert memory_format(actual) is memory_format(weight) or min(shape) == 0


def lay_out_upstream(name: str, upstream: torch.Tensor) -> torch.Tensor:
    return dict(_cases.layouts(tuple(upstream.shape)))[name](upstream)


def test_any_number_of_threads_gives_the_same():
    weight = _cases.randn((96, 80, 3, 3))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(resize_convolution_weight(weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_derivatives_of_any_order():
    weight = _cases.randn((2, 3, 3, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(resize_convolution_weight, [weight])
    assert torch.autograd.gradgradcheck(resize_convolution_weight, [weight])
    upstream = _cases.randn((4, 3, 2, 4, 4), torch.float64)
    (stacked,) = torch.autograd.grad(resize_convolution_weight(weight), weight, upstream, is_grads_batched=True)
    for grad, one in zip(stacked, upstream, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(resize_convolution_weight(weight), weight, one)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    namespace = torch.ops.genimg_fast
    torch.library.opcheck(namespace.resize_convolution_weight.default, (_cases.randn((5, 3, 3, 3), dtype),))
    torch.library.opcheck(namespace.resize_convolution_weight_grad.default, (_cases.randn((3, 5, 4, 4), dtype),))


def test_direct_call_with_bad_arguments_raises():
    for bad in (torch.zeros(2, 2, 3, 4), torch.zeros(2, 3, 3), torch.zeros(2, 2, 3, 3, dtype=torch.float16)):
        with pytest.raises(RuntimeError, match=r"\[Cout, Cin, 3, 3\]|float32 or float64"):
            torch.ops.genimg_fast.resize_convolution_weight(bad)
    with pytest.raises(RuntimeError, match=r"\[Cin, Cout, 4, 4\]"):
        torch.ops.genimg_fast.resize_convolution_weight_grad(torch.zeros(2, 2, 3, 3))


class TestKept:
    """Where no gradient is wanted, until the weight changes."""

    @pytest.fixture
    def weight(self):
        return nn.Parameter(_cases.randn((20, 5, 3, 3)))

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_until_the_weight_changes(self, weight, mode):
        with mode():
            first = resize_convolution_weight(weight)
            assert resize_convolution_weight(weight) is first
        assert isinstance(first, nn.Parameter)
        assert not first.is_inference()
        assert not first.requires_grad
        with torch.no_grad():
            weight.mul_(2)
            assert torch.equal(resize_convolution_weight(weight), 2 * first)

    def test_not_once_it_trains(self, weight):
        with torch.no_grad():
            resize_convolution_weight(weight)
        assert weight in _packed._kept
        assert resize_convolution_weight(weight).requires_grad
        assert weight not in _packed._kept

    @pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
    @torch.no_grad()
    def test_a_unit_edited_past_the_version_counter_is_noticed(self, weight, order):
        weight.data = weight.data.contiguous(memory_format=order)
        units = [((slice(None),) * d + (i,)) for d in (0, 1) for i in range(weight.shape[d])]
        units += [(slice(None), slice(None), y, x) for y in range(3) for x in range(3)]
        for unit in units:
            weight.add_(0)
            resize_convolution_weight(weight)
            weight.data[unit] += 1
            expected = reference.resize_convolution_weight(weight)
            torch.testing.assert_close(resize_convolution_weight(weight), expected)

    def test_samples_of_a_view_with_holes(self):
        larger = torch.full((6, 7, 4, 5), float("nan"))
        view = larger[1:6, 2:5, :3, 1:4]
        view.copy_(_cases.randn((5, 3, 3, 3)))
        assert torch.equal(samples(view), samples(view.contiguous()))
