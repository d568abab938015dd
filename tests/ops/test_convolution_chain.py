# SPDX-License-Identifier: MIT
"""Convolution blocks on CUDA as one node of the graph, on a machine without a GPU: their convolutions are PyTorch's own here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genimg_fast._block import Block
from genimg_fast.nn import FusedSequential, chain
from genimg_fast.ops import _half_types
from genimg_fast.ops import convolution_chain as module
from genimg_fast.ops.convolution_block import convolution_block
from genimg_fast.ops.convolution_chain import convolution_chain
from genimg_fast.reference.block_chain import block_chain
from tests import _cases
from tests._cases import assert_accurate, randn
from tests.ops._cuda_convolutions import calls, cuda_convolutions  # noqa: F401  (a fixture)

# Of each block: transposed, Cin, Cout, kernel, stride, padding; how it is normalised; activation; bias.
GENERATOR = [
    ((True, 5, 6, 4, 1, 0), "training", "relu", False),
    ((True, 6, 4, 4, 2, 1), "training", "leaky_relu", True),
    ((True, 4, 3, 4, 2, 1), "none", "tanh", True),
]
DISCRIMINATOR = [
    ((False, 3, 4, 4, 2, 1), "none", "leaky_relu", False),
    ((False, 4, 6, 4, 2, 1), "fixed", "leaky_relu", True),
    ((False, 6, 5, 3, 1, 1), "training", "none", False),
    ((False, 5, 1, 4, 1, 0), "none", "none", True),
]
CHAINS = {
    "generator": (GENERATOR, (3, 5, 1, 1)),
    "discriminator": (DISCRIMINATOR, (3, 3, 16, 16)),
    "one block": (GENERATOR[1:2], (3, 6, 4, 4)),
    "ends normalised": (GENERATOR[:2], (3, 5, 1, 1)),
}


def make(name, dtype=torch.float32):
    description, shape = CHAINS[name]
    blocks = []
    for i, ((transposed, c_in, c_out, kernel, stride, padding), norm, activation, bias) in enumerate(description):
        size = (c_in, c_out, kernel, kernel) if transposed else (c_out, c_in, kernel, kernel)
        vectors = [randn((c_out,), dtype, 10 * i + j) for j in range(5)]
        tensors = (
            nn.Parameter(randn(size, dtype, 10 * i + 9)),
            nn.Parameter(vectors[0]) if bias else None,
            vectors[1] if norm != "none" else None,
            vectors[2].square() + 0.5 if norm != "none" else None,
            nn.Parameter(vectors[3]) if norm != "none" else None,
            nn.Parameter(vectors[4]) if norm != "none" else None,
        )
        blocks.append(
            Block(
                transposed, *tensors, norm == "training", 0.1, 1e-5, (stride, stride), (padding, padding), (0, 0), (1, 1), 1,
                activation, 0.2,
            )
        )  # fmt: skip
    return channels_last(randn(shape, dtype, 99)).requires_grad_(), blocks


def channels_last(x):
    return chain.to_channels_last(x)


def copy(input, blocks, dtype):
    """The same operands as new leaves."""

    def renew(t):
        return t.detach().clone().to(dtype).requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t

    return renew(input), [Block(*map(renew, block)) for block in blocks]


def leaves(input, blocks):
    return [input, *(t for b in blocks for t in (b.weight, b.bias, b.bn_weight, b.bn_bias) if t is not None)]


def running(blocks):
    return [t for block in blocks for t in (block.running_mean, block.running_var) if t is not None]


def run(function, input, blocks):
    output = function(input, blocks)
    gradients = torch.autograd.grad(output, leaves(input, blocks), randn(output.shape, output.dtype, 30))
    return [output.detach(), *gradients, *running(blocks)]


@pytest.mark.parametrize("name", CHAINS)
def test_values_gradients_and_running_statistics(name):
    input, blocks = make(name)
    exact = run(block_chain, *copy(input, blocks, torch.float64))
    expected = run(block_chain, *copy(input, blocks, torch.float32))
    actual = run(convolution_chain, *copy(input, blocks, torch.float32))
    for i, values in enumerate(zip(actual, exact, expected, strict=True)):
        # the gradient of a bias before batch normalisation is a sum that cancels
        assert_accurate(*values, what=f"{name}, result {i}", size_of_terms=10.0 if values[1].dim() == 1 else 0.0)


@pytest.mark.parametrize("name", CHAINS)
def test_forward_is_that_of_the_blocks_one_by_one(name):
    input, blocks = make(name)
    x = input
    for block in copy(input, blocks, torch.float32)[1]:
        x = convolution_block(x, block)
    # Not bit for bit: PyTorch's sums depend on where in memory their operands begin.
    torch.testing.assert_close(convolution_chain(input, blocks), x)


def test_images_in_either_order():
    input, blocks = make("generator")
    expected = convolution_chain(input, blocks)
    images = convolution_chain(input, blocks, nchw=True)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    assert images.is_contiguous()
    assert torch.equal(images, expected)
    wanted = leaves(input, blocks)
    torch.testing.assert_close(*(torch.autograd.grad(t, wanted, randn(t.shape, seed=3)) for t in (images, expected)))


@pytest.mark.parametrize("name", ["generator", "discriminator"])
@pytest.mark.parametrize("part", ["input", "first weight", "last weight", "one bn_bias"])
@pytest.mark.parametrize("others_are_frozen", [True, False])
def test_gradients_of_a_part(name, part, others_are_frozen):
    """And nothing is computed that is not asked for."""
    input, blocks = make(name)
    normalised = next(b for b in blocks if b.bn_bias is not None)
    leaf = {
        "input": input, "first weight": blocks[0].weight, "last weight": blocks[-1].weight, "one bn_bias": normalised.bn_bias,
    }[part]  # fmt: skip
    for t in leaves(input, blocks):
        t.requires_grad_(t is leaf or not others_are_frozen)
    (expected,) = torch.autograd.grad(block_chain(input, blocks).sum(), leaf)
    output = convolution_chain(input, blocks)
    calls.clear()
    (actual,) = torch.autograd.grad(output.sum(), leaf)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    below = {"input": len(blocks), "first weight": len(blocks) - 1, "last weight": 0}
    if part in below:
        assert len(calls) == below[part]  # gradients of inputs, which are convolutions


def test_activations_are_made_anew_for_gradients_of_weights_alone(monkeypatch):
    made = []
    monkeypatch.setattr(module, "_activated", lambda *args, real=module._activated: made.append(args) or real(*args))
    for frozen, passes in ((False, 2), (True, 0)):  # a discriminator in the generator's step
        input, blocks = make("generator")
        for block in blocks:
            block.weight.requires_grad_(not frozen)
        output = convolution_chain(input, blocks)
        made.clear()
        output.sum().backward()
        assert len(made) == passes
        assert input.grad is not None


def test_activations_are_not_kept():
    """Of a block: the raw output of the convolution and two statistics; of the image layer, its output."""
    input, blocks = make("generator")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = convolution_chain(input, blocks)
    own = {t.data_ptr() for t in leaves(input, blocks)}
    shapes = sorted(tuple(t.shape) for t in kept if t.data_ptr() not in own)
    assert shapes == sorted([(6,), (6,), (4,), (4,), (3, 6, 4, 4), (3, 4, 8, 8), (3, 3, 16, 16)])
    assert output.data_ptr() in {t.data_ptr() for t in kept}


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_second_derivatives(name):
    def penalty(function, input, blocks):
        output = function(input, blocks)
        gradients = torch.autograd.grad(output.tanh().sum(), leaves(input, blocks), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves(input, blocks))

    operands = make(name, torch.float64)
    expected, actual = (penalty(f, *copy(*operands, torch.float64)) for f in (block_chain, convolution_chain))
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_stacked_gradients():
    input, blocks = make("generator")
    output = convolution_chain(input, blocks)
    upstream = torch.stack([randn(output.shape, seed=seed) for seed in (1, 2)])
    kwargs = {"retain_graph": True, "allow_unused": True}
    wanted = leaves(input, blocks)
    stacked = torch.autograd.grad(output, wanted, upstream, is_grads_batched=True, **kwargs)
    for i in range(2):
        alone = torch.autograd.grad(output, wanted, upstream[i], **kwargs)
        torch.testing.assert_close([g[i] for g in stacked], list(alone), rtol=1e-4, atol=1e-4)


def test_twice_and_without_gradients():
    input, blocks = make("generator")
    output = convolution_chain(input, blocks)
    once, again = (torch.autograd.grad(output.sum(), leaves(input, blocks), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    with torch.no_grad():
        assert not convolution_chain(input, blocks).requires_grad


def test_one_normalisation_in_two_places(as_on_cuda):
    def model(cls):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(6)
        return cls(nn.Conv2d(3, 6, 3, 1, 1), norm, nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), norm).train()

    x = randn((2, 3, 5, 5))
    actual, expected = results(model(FusedSequential), x), results(model(nn.Sequential), x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert [n for n, _ in as_on_cuda] == [2]


def test_an_output_that_backward_needs_must_not_be_changed():
    input, blocks = make("generator")
    output = convolution_chain(input, blocks)
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_running_statistics_keep_their_version():
    """As with F.batch_norm: where that served an earlier pass, its backward wants them unchanged."""
    input, blocks = make("generator")
    before = [t._version for t in running(blocks)]
    convolution_chain(input, blocks)
    assert [t._version for t in running(blocks)] == before


def test_one_layer_twice_moves_its_running_statistics_twice():
    input, (block, *_) = make("one block")
    block = block._replace(weight=nn.Parameter(randn((6, 6, 3, 3))), stride=(1, 1), padding=(1, 1), bn_bias=None)
    block = block._replace(bias=None, bn_weight=None, running_mean=torch.zeros(6), running_var=torch.ones(6))
    _, (plain,) = copy(input, [block], torch.float32)
    convolution_chain(input, [block, block])
    block_chain(input, [plain, plain])
    torch.testing.assert_close(running([block]), running([plain]))


# --- how models get there --------------------------------------------------------------------------------------------


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Blocks of a model on the CPU take the way of those on a GPU."""
    monkeypatch.setattr(chain, "may_chain", lambda input: False)
    monkeypatch.setattr(chain, "may_chain_on_cuda", lambda input, blocks: True)
    monkeypatch.setattr(_half_types, "_HAS_AMX", True)  # with which autocast is to no other type than on a GPU
    chained = []

    def see(input, blocks, nchw=False):
        chained.append((len(blocks), nchw))
        return convolution_chain(input, blocks, nchw)

    monkeypatch.setattr(chain, "convolution_chain", see)
    return chained


def generator(cls=nn.Sequential, groups=1):
    torch.manual_seed(0)
    return cls(
        nn.ConvTranspose2d(5, 8, 4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False, groups=groups),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 3, 4, 2, 1),
        nn.Tanh(),
    ).train()


def results(model, latents):
    images = model(latents)
    gradients = torch.autograd.grad(images, list(model.parameters()), randn(images.shape, images.dtype, 3))
    return [images, *gradients, *model.buffers()]


@pytest.mark.parametrize("groups", [1, 2])
def test_models(as_on_cuda, groups):
    """With groups the kernels do not serve the second block, which then runs by itself."""
    latents = randn((4, 5, 1, 1))
    model = generator(FusedSequential, groups)
    actual, expected = results(model, latents), results(generator(groups=groups), latents)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert as_on_cuda == ([(3, True)] if groups == 1 else [(1, False), (1, True)])
    assert actual[0].is_contiguous()  # as nn.Sequential's
    assert model.to(memory_format=torch.channels_last)(latents).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(as_on_cuda, dtype):
    """Without batch normalisation, whose kernels on the CPU take no bfloat16."""

    def model(cls):
        torch.manual_seed(0)
        layers = (nn.ConvTranspose2d(5, 8, 4), nn.LeakyReLU(0.2), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())
        return cls(*layers)

    latents = randn((4, 5, 1, 1)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = results(model(FusedSequential), latents), results(model(nn.Sequential), latents)
    assert as_on_cuda == [(2, True)]
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert (a.double() - e.double()).norm() <= 0.02 * e.double().norm()


def test_wrong_sizes_are_told_by_the_function_of_the_block(as_on_cuda):
    model = generator(FusedSequential)
    with pytest.raises(ValueError, match="input has 4 channels but weight"):
        model(randn((4, 4, 1, 1)))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        FusedSequential(nn.ConvTranspose2d(5, 8, 1), nn.BatchNorm2d(8)).train()(randn((1, 5, 1, 1)))


def test_only_where_gradients_or_batch_statistics_are_wanted(monkeypatch):
    monkeypatch.setattr(chain._backend, "why_not_native", lambda *tensors: None)
    input, blocks = make("generator")

    class OnCuda(torch.Tensor):
        is_cuda = True

    asked = _cases.randn((3, 5, 1, 1)).as_subclass(OnCuda)
    assert chain.may_chain_on_cuda(asked, blocks)
    evaluated = [block._replace(training=False) for block in blocks]
    assert chain.may_chain_on_cuda(asked, evaluated)  # gradients
    with torch.no_grad():
        assert chain.may_chain_on_cuda(asked, blocks)  # batch statistics
        assert not chain.may_chain_on_cuda(asked, evaluated)
    assert not chain.may_chain_on_cuda(input, blocks)  # not on CUDA
