# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genimg_fast.ops import _packed
from genimg_fast.ops._memory_order import memory_format
from genimg_fast.ops.resampling_weight import resampling_weight, samples
from genimg_fast.reference import resampling_weight as reference
from tests import _cases

# Around the sixteen input channels that are read together, and enough of both to keep two threads at work.
SHAPES = [(1, 1, 3, 3), (5, 3, 3, 3), (3, 15, 3, 3), (2, 17, 3, 3), (96, 80, 3, 3), (0, 4, 3, 3), (4, 0, 3, 3)]


def made_shape(shape: tuple[int, ...], pools: bool) -> tuple[int, ...]:
    return (shape[0], shape[1], 4, 4) if pools else (shape[1], shape[0], 4, 4)


@pytest.fixture(params=[False, True], ids=["upsampling", "mean"])
def pools(request):
    return request.param


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_reference_is_what_the_two_layers_are(padding, pools):
    x, weight = _cases.randn((2, 3, 5, 4), torch.float64), _cases.randn((6, 3, 3, 3), torch.float64, 1)
    made = reference.resampling_weight(weight, pools)
    if pools:
        expected = F.avg_pool2d(F.conv2d(x, weight, padding=padding), 2)
        actual = F.conv2d(x, made, stride=2, padding=padding)
    else:
        expected = F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=padding)
        actual = F.conv_transpose2d(x, made, stride=2, padding=2 - padding)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(shape, dtype, pools):
    exact, upstream = _cases.randn(shape, torch.float64), _cases.randn(made_shape(shape, pools), torch.float64, 1)
    exact = exact.to(dtype).double().requires_grad_()
    expected = reference.resampling_weight(exact, pools)
    (expected_grad,) = torch.autograd.grad(expected, exact, upstream)
    for name, lay_out in _cases.layouts(shape):
        weight = lay_out(exact.detach().to(dtype)).requires_grad_()
        actual = resampling_weight(weight, pools)
        (grad,) = torch.autograd.grad(actual, weight, lay_out_upstream(name, upstream.to(dtype)))
        # sums of at most four values each
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps, msg=name)
        torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=32 * torch.finfo(dtype).eps, msg=name)
        assert memory_format(actual) is memory_format(weight) or min(shape) == 0


def lay_out_upstream(name: str, upstream: torch.Tensor) -> torch.Tensor:
    return dict(_cases.layouts(tuple(upstream.shape)))[name](upstream)


def test_any_number_of_threads_gives_the_same(pools):
    weight = _cases.randn((96, 80, 3, 3))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(resampling_weight(weight, pools))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_derivatives_of_any_order(pools):
    weight = _cases.randn((2, 3, 3, 3), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(resampling_weight, [weight, pools])
    assert torch.autograd.gradgradcheck(resampling_weight, [weight, pools])
    upstream = _cases.randn((4, *made_shape((2, 3), pools)), torch.float64)
    (stacked,) = torch.autograd.grad(resampling_weight(weight, pools), weight, upstream, is_grads_batched=True)
    for grad, one in zip(stacked, upstream, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(resampling_weight(weight, pools), weight, one)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, pools):
    namespace = torch.ops.genimg_fast
    torch.library.opcheck(namespace.resampling_weight.default, (_cases.randn((5, 3, 3, 3), dtype), pools))
    torch.library.opcheck(namespace.resampling_weight_grad.default, (_cases.randn((3, 5, 4, 4), dtype), pools))


def test_direct_call_with_bad_arguments_raises(pools):
    for bad in (torch.zeros(2, 2, 3, 4), torch.zeros(2, 3, 3), torch.zeros(2, 2, 3, 3, dtype=torch.float16)):
        with pytest.raises(RuntimeError, match=r"\[Cout, Cin, 3, 3\]|float32 or float64"):
            torch.ops.genimg_fast.resampling_weight(bad, pools)
    with pytest.raises(RuntimeError, match=r"\[Cout, Cin, 4, 4\]" if pools else r"\[Cin, Cout, 4, 4\]"):
        torch.ops.genimg_fast.resampling_weight_grad(torch.zeros(2, 2, 3, 3), pools)


class TestKept:
    """Where no gradient is wanted, until the weight changes."""

    @pytest.fixture
    def weight(self):
        return nn.Parameter(_cases.randn((20, 5, 3, 3)))

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_until_the_weight_changes(self, weight, mode, pools):
        with mode():
            first = resampling_weight(weight, pools)
            assert resampling_weight(weight, pools) is first
        assert isinstance(first, nn.Parameter)
        assert not first.is_inference()
        assert not first.requires_grad
        with torch.no_grad():
            weight.mul_(2)
            assert torch.equal(resampling_weight(weight, pools), 2 * first)

    def test_not_once_it_trains(self, weight, pools):
        with torch.no_grad():
            resampling_weight(weight, pools)
        assert weight in _packed._kept
        assert resampling_weight(weight, pools).requires_grad
        assert weight not in _packed._kept

    @pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
    @torch.no_grad()
    def test_a_unit_edited_past_the_version_counter_is_noticed(self, weight, order, pools):
        weight.data = weight.data.contiguous(memory_format=order)
        units = [((slice(None),) * d + (i,)) for d in (0, 1) for i in range(weight.shape[d])]
        units += [(slice(None), slice(None), y, x) for y in range(3) for x in range(3)]
        for unit in units:
            weight.add_(0)
            resampling_weight(weight, pools)
            weight.data[unit] += 1
            expected = reference.resampling_weight(weight, pools)
            torch.testing.assert_close(resampling_weight(weight, pools), expected)

    @torch.no_grad()
    def test_of_a_weight_that_serves_both(self, weight):
        made = [resampling_weight(weight, pools) for pools in (False, True, False, True)]
        assert made[0] is made[2]
        assert made[1] is made[3]
        for pools in (False, True):
            torch.testing.assert_close(made[pools], reference.resampling_weight(weight, pools))

    def test_samples_of_a_view_with_holes(self):
        larger = torch.full((6, 7, 4, 5), float("nan"))
        view = larger[1:6, 2:5, :3, 1:4]
        view.copy_(_cases.randn((5, 3, 3, 3)))
        assert torch.equal(samples(view), samples(view.contiguous()))
