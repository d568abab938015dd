# SPDX-License-Identifier: MIT
"""The native chain of convolution blocks, through `FusedSequential`, which is how it is reached."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from genimg_fast import _backend, models, unfuse
from genimg_fast._block import Block
from genimg_fast.backends import cpu
from genimg_fast.nn import FusedSequential
from genimg_fast.ops import block_chain as ops
from tests import _cases
from tests.ops._chains import generator


@pytest.fixture(autouse=True)
def native():
    """Whatever is faster."""
    with _backend.use_backend("native"):
        yield


def ends_in_norm() -> FusedSequential:
    torch.manual_seed(1)
    return FusedSequential(
        *(nn.Conv2d(3, 6, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(6, 12, 4, 2, 1), nn.BatchNorm2d(12), nn.LeakyReLU(0.2)),
    )


CANCELLED = {"generator": ("0.bias", "5.bias"), "ends in norm": ("2.bias",)}
"""Biases that batch normalisation removes: their gradient is 0, all noise."""
CHAINS = {"generator": (generator, (3, 6, 2, 2)), "ends in norm": (ends_in_norm, (4, 3, 12, 12))}


def results(
    model: nn.Module, input: torch.Tensor, dtype: torch.dtype, training: bool = True
) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers, under an upstream gradient that varies."""
    model = copy.deepcopy(model).to(dtype).train(training)
    input = input.detach().to(dtype).requires_grad_()
    output = model(input)
    (output * _cases.randn(tuple(output.shape), dtype, 99)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"output": output.detach(), "input": input.grad, **gradients, **dict(model.named_buffers())}


@pytest.fixture
def chained(monkeypatch):
    """How many chains ran, by their number of blocks."""
    from genimg_fast.nn import chain

    lengths = []
    original = chain.block_chain
    monkeypatch.setattr(
        chain, "block_chain", lambda x, blocks, *more: lengths.append(len(blocks)) or original(x, blocks, *more)
    )
    return lengths


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_matches_float64(isa, chained, name, training, layout):
    make, shape = CHAINS[name]
    model, input = make(), _cases.randn(shape)
    laid_out = dict(_cases.layouts(shape))[layout](input)
    plain = unfuse(copy.deepcopy(model))
    exact, torch_result = results(plain, input, torch.float64, training), results(plain, input, torch.float32, training)
    actual = results(model, laid_out, torch.float32, training)
    assert chained == [6 if name == "generator" else 2]
    for key, value in actual.items():
        if value is None or not value.is_floating_point():
            assert torch.equal(value, exact[key])
        elif training and key in CANCELLED[name]:
            assert value.abs().max() < 1e-4
        else:
            _cases.assert_accurate(value, exact[key], torch_result[key], _cases.ERROR_FACTOR_WINOGRAD, key)


@pytest.mark.parametrize("name", CHAINS)
def test_the_gradient_of_a_weight_lies_as_the_weight(name):
    """Else autograd would copy it, in more time than the kernels take."""
    make, shape = CHAINS[name]
    model, input = make(), _cases.randn(shape).to(memory_format=torch.channels_last)

    def gradients() -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(input).square().sum(), list(model.parameters())))

    expected = gradients()
    model.to(memory_format=torch.channels_last)
    assert not all(p.is_contiguous() for p in model.parameters())
    for grad, parameter, of_contiguous in zip(gradients(), model.parameters(), expected, strict=True):
        assert torch.equal(grad, of_contiguous)
        assert grad.stride() == parameter.stride()


@pytest.mark.parametrize("variant", cpu.VARIANTS)
def test_gradients_of_each_variant(isa, variant):
    """In float64, through the kernels that serve float32."""
    model = generator().double()
    input = _cases.randn((3, 6, 2, 2), torch.float64).requires_grad_()
    with cpu.force_variant("direct"):
        plain_sums = model(input)
    with cpu.force_variant(variant):
        output = model(input)
        assert torch.equal(output, plain_sums) == (variant == "direct")  # else it is not the variant that ran
        assert torch.autograd.gradcheck(lambda *_: model(input), (input, *model.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_of_gradients(name):
    make, shape = CHAINS[name]
    model = make().double()
    input = _cases.randn(shape, torch.float64).requires_grad_()
    parameters = list(model.parameters())

    def function(*_):
        return model(input)

    assert torch.autograd.gradcheck(function, (input, *parameters), fast_mode=True, atol=1e-4)
    assert torch.autograd.gradgradcheck(function, (input, *parameters), fast_mode=True, atol=1e-4)


class Calls(TorchDispatchMode):
    """The operators that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made.append((func.name().split("::")[1], args))
        return func(*args, **(kwargs or {}))

    def names(self) -> set[str]:
        return {name for name, _ in self.made}


def norms(kind: str) -> list[nn.Module]:
    return {"none": [], "batch": [nn.BatchNorm2d(5)], "fixed": [nn.BatchNorm2d(5).eval()]}[kind]


def with_all_derivatives(layer: nn.Module) -> Any:
    """PyTorch's batch normalisation in training takes the moments of the batch for constants in its third derivative."""
    if not isinstance(layer, nn.BatchNorm2d) or not layer.training:
        return layer
    by_formula = nn.Module()

    def forward(x):
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        weight, bias = (t.view(1, -1, 1, 1) for t in (layer.weight, layer.bias))
        return (x - mean) * (var + layer.eps).rsqrt() * weight + bias

    by_formula.forward = forward
    return by_formula


@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("norm", ["none", "batch", "fixed"])
@pytest.mark.parametrize("first", [nn.Conv2d, nn.ConvTranspose2d])
def test_derivatives_of_each_order(first, norm, activation):
    """A gradient, that of its square, and that of that one's: those of plain PyTorch, and by the kernels alone."""
    torch.manual_seed(0)
    last = nn.ConvTranspose2d if first is nn.Conv2d else nn.Conv2d
    make = activation if activation is not nn.Identity else lambda: None
    bias = norm != "batch"  # which removes it: its derivatives are 0, all noise
    layers = [first(3, 5, 4, 2, 1, bias=bias), *norms(norm), make(), last(5, 4, 3, 1, 1), make()]
    model = FusedSequential(*(layer for layer in layers if layer is not None)).double()
    input = _cases.randn((2, 3, 6, 6), torch.float64).requires_grad_()
    leaves = [input, *model.parameters()]

    def derivatives(output: torch.Tensor) -> list[torch.Tensor]:
        found, result = [], output.square().sum()
        for create_graph in (True, True, False):
            gradients = torch.autograd.grad(
                result, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
            found += gradients
            result = sum(g.square().sum() for g in gradients)
        return found

    output = model(input)  # which a mode would see as PyTorch's operators
    with Calls() as calls:
        actual = derivatives(output)
    expected = derivatives(nn.Sequential(*map(with_all_derivatives, model.children()))(input))
    torch.testing.assert_close(actual, expected)
    assert not calls.names() & {"convolution", "convolution_backward"}


@pytest.mark.parametrize("recorded", [True, False])
def test_gradients_that_nobody_asked_for_are_not_computed(recorded):
    model, input = ends_in_norm().double(), _cases.randn((4, 3, 12, 12), torch.float64).requires_grad_()
    output = model(input).square().sum()
    expected = torch.autograd.grad(output, [input, *model.parameters()], retain_graph=True)
    with Calls() as calls:
        found = torch.autograd.grad(output, [input, model[2].weight], create_graph=recorded)
    torch.testing.assert_close(found, (expected[0], expected[3]))
    wants = [args[-2] for name, args in calls.made if name == "block_chain_backward"]
    of_the_second_then_of_the_first = [[1, 0], [0, 1], [1, 0]]
    assert wants == (of_the_second_then_of_the_first if recorded else [[1, 0, 0, 1, 0, 0, 0]])


@pytest.mark.parametrize("recorded", [True, False])
def test_stacked_gradients_in_one_backward_pass(recorded):
    model = generator().double()
    input = _cases.randn((3, 6, 2, 2), torch.float64).requires_grad_()
    output = model(input)
    stack = _cases.randn((2, *output.shape), torch.float64)
    leaves = [input, *model.parameters()]
    expected = [torch.autograd.grad(output, leaves, g, retain_graph=True) for g in stack]
    actual = torch.autograd.grad(output, leaves, stack, is_grads_batched=True, create_graph=recorded)
    torch.testing.assert_close(list(actual), [torch.stack(gs) for gs in zip(*expected, strict=True)])


@pytest.mark.parametrize("recorded", [True, False])
def test_stacked_gradients_of_a_gradient(recorded):
    """As in torch.autograd.functional.hessian(vectorize=True); `recorded` adds the derivative of that."""
    model = generator().double()
    input = _cases.randn((3, 6, 2, 2), torch.float64).requires_grad_()
    leaves = [input, *model.parameters()]
    (gradient,) = torch.autograd.grad(model(input).square().sum(), input, create_graph=True)
    stack = _cases.randn((2, *gradient.shape), torch.float64)

    def derivatives(found: list[torch.Tensor]) -> list[torch.Tensor]:
        if recorded:
            found += torch.autograd.grad(sum(g.square().sum() for g in found), leaves)
        return found

    options = {"retain_graph": True, "create_graph": recorded, "allow_unused": True, "materialize_grads": True}
    one_by_one = [torch.autograd.grad(gradient, leaves, g, **options) for g in stack]
    expected = derivatives([torch.stack(gs) for gs in zip(*one_by_one, strict=True)])
    (gradient,) = torch.autograd.grad(model(input).square().sum(), input, create_graph=True)
    actual = derivatives(list(torch.autograd.grad(gradient, leaves, stack, is_grads_batched=True, **options)))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6 * max(1.0, e.abs().max().item()))


def test_operator_contract():
    model, input = generator(), _cases.randn((2, 6, 1, 1)).requires_grad_()
    seen = {}

    def keep(x, blocks, *_):
        seen["blocks"] = blocks
        return x

    from genimg_fast.nn import chain

    original, chain.block_chain = chain.block_chain, keep
    try:
        model(input)
    finally:
        chain.block_chain = original
    parameters, fixed, codes, numbers = ops.describe(seen["blocks"])
    torch.library.opcheck(torch.ops.genimg_fast.block_chain_training, (input, parameters, fixed, codes, numbers))
    model.eval()
    chain.block_chain = keep
    try:
        model(input)
    finally:
        chain.block_chain = original
    parameters, fixed, codes, numbers = ops.describe(seen["blocks"])
    packed = torch.ops.genimg_fast.block_chain_pack(input, parameters, codes, numbers, [0, 1, 2, 3, 4, 5])
    detached = [p.detach() for p in parameters]
    for weights in ([], packed):
        torch.library.opcheck(
            torch.ops.genimg_fast.block_chain_inference,
            (input.detach(), detached, fixed, weights, codes, numbers),
            test_utils=("test_schema", "test_faketensor"),  # it has no gradient
        )


def saved_bytes(function) -> int:
    """Of the distinct storages that the backward pass keeps, parameters not counted."""
    kept = {}

    def pack(t):
        if not isinstance(t, nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = function()
    assert output.requires_grad
    return sum(kept.values())


def test_a_generator_keeps_about_half_of_what_eager_keeps():
    model = models.DCGAN(image_size=64).generator
    eager = unfuse(copy.deepcopy(model))
    for layer in eager.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
    z = torch.randn(4, 100, 1, 1)
    assert saved_bytes(lambda: model(z)) < 0.55 * saved_bytes(lambda: eager(z))


def test_backward_can_run_twice_and_under_checkpointing():
    model, input = generator(), _cases.randn((3, 6, 2, 2)).requires_grad_()
    output = model(input).square().sum()
    first = torch.autograd.grad(output, input, retain_graph=True)[0]
    second = torch.autograd.grad(output, input)[0]
    assert torch.equal(first, second)
    again = torch.autograd.grad(checkpoint(model, input, use_reentrant=False).square().sum(), input)[0]
    torch.testing.assert_close(again, first)


def test_only_what_is_asked_for_is_computed():
    model, input = generator(), _cases.randn((3, 6, 2, 2))
    expected = results(model, input, torch.float32)
    model.requires_grad_(False)
    model[3].weight.requires_grad_()
    model(input).mul(_cases.randn((3, 3, 20, 20), seed=99)).sum().backward()
    torch.testing.assert_close(model[3].weight.grad, expected["3.weight"])
    assert all(p.grad is None for name, p in model.named_parameters() if name != "3.weight")


def test_blocks_that_no_gradient_reaches_keep_nothing_for_backward():
    model, input = generator(), _cases.randn((3, 6, 2, 2))
    plain = unfuse(copy.deepcopy(model))
    for frozen in (model, plain):
        frozen.requires_grad_(False)
        frozen[3:].requires_grad_()
    made = model[:3](input).numel() * input.element_size()
    of_all = saved_bytes(lambda: model(input.clone().requires_grad_()))
    # neither what they make, which the block after them keeps as its input, nor what their convolution makes
    assert saved_bytes(lambda: model(input)) <= of_all - input.numel() * input.element_size()
    assert saved_bytes(lambda: model(input)) >= made
    gradients = [torch.autograd.grad(m(input).square().sum(), list(m[3:].parameters())) for m in (model, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_backward_ends_at_the_lowest_gradient_that_is_wanted():
    blocks = [made_block(6, 5, training=True), made_block(5, 4, training=False)]
    input = _cases.randn((2, 6, 4, 4))
    description = parameters, fixed, codes, numbers = ops.describe(blocks)
    output, stored, statistics = torch.ops.genimg_fast.block_chain_training(input, *description)
    saved = input, output, parameters, fixed, stored, statistics, codes, numbers
    run = torch.ops.genimg_fast.block_chain_backward
    wanted = [0] * (1 + len(parameters))
    _, grads = run(torch.ones_like(output), *saved, [*wanted[:-1], 1], False)
    assert [g.numel() for g in grads[:-1]] == [0] * (
        len(grads) - 1
    )  # where it goes on, those of the normalisation come back too
    _, all_grads = run(torch.ones_like(output), *saved, [1] * len(wanted), False)
    assert torch.equal(grads[-1], all_grads[-1])


def made_block(in_channels: int, out_channels: int, training: bool) -> Block:
    norm = (torch.rand(out_channels), torch.rand(out_channels)) if training else (None, None)
    weight = _cases.randn((in_channels, out_channels, 4, 4))
    return Block(
        True, weight, None, None, None, *norm, training, 0.1, 1e-5, (2, 2), (1, 1), (0, 0), (1, 1), 1, "relu", 0.0
    )


def test_frozen_statistics_inside_a_training_chain(chained):
    model, input = generator(), _cases.randn((3, 6, 2, 2))
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    model[1].eval()
    plain = unfuse(copy.deepcopy(model))
    for m in (model, plain):
        m.train()
        m[1].eval()
    output, expected = model(input), plain(input)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    assert chained == [6]
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()), rtol=1e-4, atol=1e-5)


def test_a_model_is_stacked_by_vmap_without_gradients():
    model, input = generator().eval(), _cases.randn((3, 2, 6, 2, 2))
    with torch.no_grad():
        torch.testing.assert_close(
            torch.vmap(model)(input), torch.stack([model(x) for x in input]), rtol=1e-4, atol=1e-5
        )


def test_what_the_chain_cannot_serve_breaks_it(chained):
    torch.manual_seed(0)
    model = FusedSequential(
        *(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 1, 1)),
        *(nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.BatchNorm2d(8)),
        *(nn.Conv2d(8, 4, 3, 1, 1), nn.LeakyReLU(-0.5), nn.ConvTranspose2d(4, 2, 2, 2)),
    )
    input = _cases.randn((2, 4, 5, 5))
    with _backend.use_backend("auto"), torch.no_grad():
        torch.testing.assert_close(model(input), unfuse(copy.deepcopy(model))(input), rtol=1e-4, atol=1e-5)
    assert chained == [2, 1]


def test_weights_without_channels_are_refused():
    """Not only by the Python around it: the kernels would divide by their number."""
    for transposed, shape in ((True, (3, 0, 4, 4)), (True, (3, 5, 0, 4)), (False, (0, 3, 4, 4))):
        weight = torch.ones(shape)
        none = (None,) * 5
        block = Block(transposed, weight, *none, False, 0.1, 1e-5, (2, 2), (1, 1), (0, 0), (1, 1), 1, "none", 0.0)
        parameters, _, codes, numbers = ops.describe([block])
        with pytest.raises(RuntimeError, match=r"weight has no|the kernel not empty"):
            torch.ops.genimg_fast.block_chain_inference(torch.ones(2, 3, 8, 8), parameters, [], [], codes, numbers)


def test_malformed_calls_of_the_operator_are_refused():
    block = Block(
        True, torch.randn(3, 4, 4, 4), None, None, None, None, None, False, 0.1, 1e-5, (2, 2), (1, 1), (0, 0), (1, 1), 1,
        "relu", 0.0,
    )  # fmt: skip
    parameters, fixed, codes, numbers = ops.describe([block])
    run = torch.ops.genimg_fast.block_chain_training
    with pytest.raises(RuntimeError, match="Cin"):
        run(torch.randn(2, 5, 4, 4), parameters, fixed, codes, numbers)
    with pytest.raises(RuntimeError, match="dtype"):
        run(torch.randn(2, 3, 4, 4).double(), parameters, fixed, codes, numbers)
    with pytest.raises(RuntimeError, match="malformed"):
        run(torch.randn(2, 3, 4, 4), parameters, fixed, codes[:-1], numbers)
    with pytest.raises(RuntimeError, match="too few parameters"):
        run(torch.randn(2, 3, 4, 4), [], fixed, codes, numbers)
    input = torch.randn(2, 3, 4, 4)
    output, stored, statistics = run(input, parameters, fixed, codes, numbers)
    for grad, made in ((output.double(), output), (output, output.double())):
        with pytest.raises(RuntimeError, match="a gradient or a saved tensor is not of input's dtype"):
            torch.ops.genimg_fast.block_chain_backward(
                grad, input, made, parameters, fixed, stored, statistics, codes, numbers, [1, 1], False
            )
    # what is not a packed weight is not read as one
    stretched = torch.ones(1).expand(10**9)
    actual = torch.ops.genimg_fast.block_chain_inference(input, parameters, fixed, [stretched], codes, numbers)
    torch.testing.assert_close(actual, output)


def test_the_chain_is_left_to_the_reference_when_asked(chained):
    with _backend.use_backend("reference"):
        generator()(_cases.randn((3, 6, 2, 2)))
    assert not chained


def test_the_output_after_a_normalisation_may_be_changed_in_place():
    model = FusedSequential(nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    output = model(_cases.randn((4, 3, 16, 16)).requires_grad_())
    output.mul_(2)
    output.sum().backward()
