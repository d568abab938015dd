# SPDX-License-Identifier: MIT
"""What ties the CUDA convolution blocks to PyTorch, on a machine without a GPU: their kernels are PyTorch's own here.

The kernels themselves run in tests/cuda_on_cpu.
"""

from __future__ import annotations

import gc

import pytest
import torch

from genimg_fast import _extension, backends
from genimg_fast._block import Block
from genimg_fast.ops import _packed, convolution_block
from genimg_fast.reference.block_chain import block_chain
from tests._cases import assert_accurate, randn
from tests.ops._cuda_convolutions import calls, cuda_convolutions  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif(not _extension.status("cpu").loaded, reason="the schemas are in the CPU library")


GEOMETRIES = {
    "k4s2p1": (True, 4, 2, 1, 0),
    "k3s2p1op1": (True, 3, 2, 1, 1),
    "k4s1p0": (True, 4, 1, 0, 0),
    "conv k4s2p1": (False, 4, 2, 1, 0),
    "conv k3s1p1": (False, 3, 1, 1, 0),
    "conv k3s2, a column that no kernel reaches": (False, 3, 2, 0, 0),
}


def make(geometry, *, training=False, norm=True, dtype=torch.float32, size=6, seed=0, **options):
    transposed, kernel, stride, padding, output_padding = GEOMETRIES[geometry]
    c_in, c_out = 4, 6
    shape = (c_in, c_out, kernel, kernel) if transposed else (c_out, c_in, kernel, kernel)
    leaves = [
        torch.nn.Parameter(randn(s, dtype, seed + i)) for i, s in enumerate([shape, (c_out,), (c_out,), (c_out,)])
    ]
    weight, bias, bn_weight, bn_bias = leaves
    running = (randn((c_out,), dtype, 9), randn((c_out,), dtype, 10).square() + 0.5) if norm else (None, None)
    block = Block(
        transposed, weight, bias, *running, bn_weight if norm else None, bn_bias if norm else None, training, 0.1, 1e-5,
        (stride, stride), (padding, padding), (output_padding, output_padding), (1, 1), 1,
        options.get("activation", "leaky_relu"), 0.2,
    )  # fmt: skip
    return randn((3, c_in, size, size), dtype, 20).requires_grad_(), block


def copy(input, block, dtype):
    """The same operands as new leaves."""
    fields = block._asdict()
    for name, value in fields.items():
        if isinstance(value, torch.Tensor):
            fields[name] = value.detach().clone().to(dtype).requires_grad_(value.requires_grad)
    return input.detach().to(dtype).requires_grad_(), Block(**fields)


def run(function, input, block):
    output = function(input, block)
    upstream = randn(output.shape, output.dtype, 30)
    leaves = [t for t in (input, block.weight, block.bias, block.bn_weight, block.bn_bias) if t is not None]
    gradients = torch.autograd.grad(output, leaves, upstream)
    return [output.detach(), *gradients, *(t for t in (block.running_mean, block.running_var) if t is not None)]


def eager(input, block):
    return block_chain(input, [block])


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("mode", ["training", "fixed statistics", "no normalisation"])
def test_values_and_gradients(geometry, mode):
    input, block = make(geometry, training=mode == "training", norm=mode != "no normalisation")
    exact = run(eager, *copy(input, block, torch.float64))
    expected = run(eager, *copy(input, block, torch.float32))
    actual = run(convolution_block.convolution_block, *copy(input, block, torch.float32))
    for i, values in enumerate(zip(actual, exact, expected, strict=True)):
        # the gradient of a bias before batch normalisation is a sum that cancels
        terms = input.numel() ** 0.5 if i == 3 and mode == "training" else 0.0
        assert_accurate(*values, what=f"{geometry}, {mode}, result {i}", size_of_terms=terms)
    # the gradient for input is the other convolution, by the same kernels
    assert ("inference", int(not block.transposed), False) in calls


@pytest.mark.parametrize("geometry", ["k4s2p1", "conv k3s1p1"])
@pytest.mark.parametrize("records", [False, True])
def test_output_in_nchw_on_request(geometry, records):
    # where gradients are recorded, normalisation is a pass of its own, and keeps the order of its input
    input, block = make(geometry, norm=not records)
    input = input.detach().contiguous(memory_format=torch.channels_last)
    with torch.set_grad_enabled(records):
        channels_last, nchw = (convolution_block.convolution_block(input, block, nchw) for nchw in (False, True))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert nchw.is_contiguous()
    assert torch.equal(nchw, channels_last)
    if records:
        upstream = randn(nchw.shape, nchw.dtype, 30)
        leaves = (block.weight, block.bias)
        torch.testing.assert_close(*(torch.autograd.grad(output, leaves, upstream) for output in (channels_last, nchw)))


def test_second_derivatives():
    input, block = make("k4s2p1", norm=False, dtype=torch.float64, size=2, activation="tanh")

    def function(input, weight, bias):
        return convolution_block.convolution_block(input, block._replace(weight=weight, bias=bias))

    operands = (input, block.weight, block.bias)
    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("geometry", ["k4s2p1", "conv k3s2, a column that no kernel reaches"])
@pytest.mark.parametrize("training", [False, True])
def test_opcheck(geometry, training):
    input, block = make(geometry)
    codes = block.geometry.codes()
    affine = (block.bn_weight, block.bn_bias, 1e-5, codes, 2, 0.2, 1, -1)
    for layout in (torch.contiguous_format, torch.channels_last):
        image = input.detach().contiguous(memory_format=layout).requires_grad_()
        if training:
            op, args = torch.ops.genimg_fast.convolution_block_training, (image, block.weight, block.bias, *affine)
        else:
            op, args = (
                torch.ops.genimg_fast.convolution_block,
                (image, block.weight, None, block.bias, None, None, None, None, *affine[2:]),
            )
        torch.library.opcheck(op, args)
        if not training:
            torch.library.opcheck(op, (*args, True))


def test_weights_are_packed_once_where_a_graph_is_captured():
    input, block = make("k4s2p1")
    with torch.no_grad():
        convolution_block.convolution_block(input, block)
    assert calls == [("inference", 1, False)]  # the operator packs for itself
    with torch.no_grad(), _packed.kept_on_cuda():
        for _ in range(3):
            convolution_block.convolution_block(input, block)
        assert calls.count(("pack",)) == 1
        block.weight.mul_(2)
        convolution_block.convolution_block(input, block)
        assert calls.count(("pack",)) == 2
    convolution_block.convolution_block(input, block)  # records gradients: what is packed would soon be stale
    assert calls[-1] == ("inference", 1, False)
    assert block.weight not in _packed._kept or not _packed._kept[block.weight]


def test_who_captures_a_graph_holds_the_packed_weights():
    input, block = make("k4s2p1")
    with torch.no_grad(), _packed.kept_on_cuda() as packed:
        for _ in range(2):
            convolution_block.convolution_block(input, block)
    convolution_block.convolution_block(input, block)  # records gradients, and drops them elsewhere
    assert all(torch.equal(p, block.weight.detach().flatten()) for p in packed)
    assert len(packed) == 2


def test_packed_weights_go_with_the_weight():
    input, block = make("k4s2p1")
    with torch.no_grad(), _packed.kept_on_cuda():
        convolution_block.convolution_block(input, block)
    before = len(_packed._kept)
    del block
    gc.collect()
    assert len(_packed._kept) == before - 1


def test_wgmma_is_used_where_it_is_allowed(monkeypatch):
    asked_for = []

    def kernel(*arguments):
        asked_for.append(arguments[-3:-1])
        return torch.zeros(1)

    monkeypatch.setattr(torch.ops.genimg_fast, "convolution_block", kernel)
    input, block = make("k4s2p1")

    def run():
        with torch.no_grad():
            convolution_block.convolution_block(input.half(), block._replace(weight=block.weight.half()))
        return asked_for.pop()  # as csrc/ops/convolution_block.cpp numbers them

    assert run() == (1, -1)
    monkeypatch.setattr(backends.cuda, "allow_wgmma", True)
    assert run() == (2, -1)
    for name, (by_wgmma, tile) in backends.cuda.TILES.items():
        with backends.cuda.force_tile(name):
            assert run() == (2 if by_wgmma else 1, tile)
    assert run() == (2, -1)
    with (
        pytest.raises(ValueError, match="tile is '64x64'; allowed are 'mma_128x128', "),
        backends.cuda.force_tile("64x64"),
    ):
        pass


@pytest.fixture
def no_tf32():
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def test_reasons():
    input, block = make("k4s2p1")
    assert convolution_block.unsupported(input.shape, input.dtype, block) is None
    assert convolution_block.slower(input.shape, input.dtype, block) is None
    assert "groups=2" in convolution_block.unsupported(input.shape, input.dtype, block._replace(groups=2))
    assert "stride (3, 3)" in convolution_block.slower(input.shape, input.dtype, block._replace(stride=(3, 3)))
    for channels, reason in ((3, None), (15, None), (17, "17 input channels")):  # of float16
        odd = torch.zeros(channels, 6, 4, 4, dtype=torch.float16)
        found = convolution_block.slower(input.shape, torch.float16, block._replace(weight=odd))
        assert found is None if reason is None else reason in found


def test_reasons_where_tf32_is_not_allowed(no_tf32):
    input, block = make("k4s2p1")
    assert "TF32" in convolution_block.slower(input.shape, input.dtype, block)
    assert convolution_block.unsupported(input.shape, input.dtype, block) is None  # the plain kernel
    input, block = make("conv k4s2p1")
    assert "TF32" in convolution_block.unsupported(input.shape, input.dtype, block)
