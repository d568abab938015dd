# SPDX-License-Identifier: MIT
"""A pass in inference is repeated only while nothing that it depends on has changed."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from genimg_fast import fuse, unfuse, use_backend
from genimg_fast.nn import FusedSequential, replay
from genimg_fast.nn.layers import Call
from genimg_fast.nn.sequential import run_in_turn
from tests import _cases

pytestmark = pytest.mark.usefixtures("recorded_at_once")


@torch.no_grad()
def test_the_second_pass_with_the_same_weights_is_the_one_that_is_recorded(monkeypatch):
    monkeypatch.undo()
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.PReLU(), nn.ConvTranspose2d(5, 4, 4, 2, 1)).eval()
    inputs = [_cases.randn((n, 3, 4, 4)) for n in (2, 3)]
    outputs = []
    for _ in range(3):  # as after steps of training
        model[2].weight.mul_(1.5)
        for input in inputs:
            outputs.append(model(input))
            torch.testing.assert_close(outputs[-1], unfuse(copy.deepcopy(model))(input), rtol=1e-4, atol=1e-5)
            assert replay.replay([model], input) is None
    for input, output in zip(inputs, outputs[-2:], strict=True):
        assert torch.equal(model(input), output)
        assert torch.equal(replay.replay([model], input), output)


def move_normalization_to_the_end(model):
    norm = model._modules.pop("1")
    model._modules["1"] = norm


CHANGES = {
    "an attribute": lambda m: setattr(m[1], "eps", 0.5),
    "a hook": lambda m: m[0].register_forward_hook(lambda module, args, output: 2 * output),
    "a child": lambda m: m.__setitem__(2, nn.Sigmoid()),
    "one child less": lambda m: m.__delitem__(2),
    "a buffer": lambda m: setattr(m[1], "running_mean", torch.ones(5)),
    "a buffer's values": lambda m: m[1].running_mean.add_(1),
    "a parameter": lambda m: setattr(m[1], "bias", nn.Parameter(torch.ones(5))),
    "the order": move_normalization_to_the_end,
    "a parameter's memory": lambda m: setattr(m[1].bias, "data", torch.ones(5)),
    "a buffer's memory": lambda m: setattr(m[1].running_mean, "data", torch.ones(5)),
    "a weight's values, unnoticed": lambda m: m[0].weight.data.add_(1),
    "the mode": lambda m: m.train(),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_is_seen(change, memory_format):
    torch.manual_seed(0)
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.BatchNorm2d(5), nn.ReLU()).eval()
    model.to(memory_format=memory_format)
    model[1].running_mean.fill_(0.3)
    input = _cases.randn((2, 3, 4, 4))
    before = model(input)
    assert replay.replay([model], input) is not None
    CHANGES[change](model)
    expected = unfuse(copy.deepcopy(model))(input)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@torch.no_grad()
def test_a_pass_gives_the_same_bits_each_time_where_pytorch_convolves_and_a_kernel_normalizes(padding_mode):
    torch.manual_seed(0)
    grouped = nn.Conv2d(16, 64, 3, 1, 1, groups=2, padding_mode=padding_mode)
    model = nn.Sequential(
        *(nn.ConvTranspose2d(8, 16, 4, 2, 1), nn.ReLU()),
        *(grouped, nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 8, 4, 2, 1), nn.Tanh()),
    ).eval()
    model[3].running_mean.uniform_(-0.1, 0.1)
    model[3].running_var.uniform_(0.5, 1.5)
    fuse(model)
    input = _cases.randn((2, 8, 32, 32))  # of which the block in the middle makes as many values as are worth a kernel
    first = model(input)
    model(input)
    assert replay.replay([model], input) is not None
    assert torch.equal(model(input), first)


@torch.no_grad()
def test_hooks_for_all_modules_are_seen():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    model(input)
    assert replay.replay([model], input) is not None
    seen = []
    handle = register_module_forward_hook(lambda module, args, output: seen.append(type(module)))
    try:
        model(input)
    finally:
        handle.remove()
    assert seen == [nn.ConvTranspose2d, nn.ReLU, FusedSequential]


@torch.no_grad()
def test_a_parameter_of_one_value_that_was_replaced():
    model = FusedSequential(nn.ConvTranspose2d(3, 1, 4, 2, 1, bias=False), nn.BatchNorm2d(1)).eval()
    input = _cases.randn((2, 3, 4, 4))
    before = model(input)
    model[1].bias = nn.Parameter(torch.zeros(1))  # equal, and then not
    torch.testing.assert_close(model(input), before)
    model[1].bias += 1
    torch.testing.assert_close(model(input), before + 1)


@torch.no_grad()
@pytest.mark.parametrize("change", ["a parameter", "a buffer", "a child"])
def test_a_change_is_seen_in_a_model_that_keeps_its_parts_in_ordered_dicts(change):
    """As one that an older PyTorch pickled."""
    torch.manual_seed(0)
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.BatchNorm2d(5), nn.ReLU()).eval()
    for module in model.modules():
        for name in ("_parameters", "_buffers", "_modules"):
            module.__dict__[name] = OrderedDict(module.__dict__[name])
    input = _cases.randn((2, 3, 4, 4))
    model(input)
    assert replay.replay([model], input) is not None
    CHANGES[change](model)
    torch.testing.assert_close(model(input), unfuse(copy.deepcopy(model))(input), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_parameter_cut_in_place_is_an_error_as_without_repetition():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.BatchNorm2d(5)).eval()
    input = _cases.randn((2, 3, 4, 4))
    model(input)
    model[1].bias.data = model[1].bias.data[:2]
    with pytest.raises(ValueError, match=r"bn_bias must have shape \(5,\)"):
        model(input)


class Incomparable:
    def __eq__(self, other):
        raise TypeError("not to be compared")

    __hash__ = None


@torch.no_grad()
def test_attributes_that_cannot_be_compared_do_not_reach_the_user():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    for _ in range(3):
        model[0].note = Incomparable()
        expected = model(input)
    assert torch.equal(replay.replay([model], input), expected)


@torch.no_grad()
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_output_of_a_channels_last_model_stays_in_that_order(kernel_size):
    model = FusedSequential(nn.Conv2d(3, 5, kernel_size), nn.ReLU()).eval().to(memory_format=torch.channels_last)
    input = _cases.randn((2, 3, 4, 4))
    with use_backend("native"):
        for _ in range(3):
            assert model(input).is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_two_threads_that_find_the_same_pass_outdated(monkeypatch):
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    expected = model(input)
    both, results = threading.Barrier(2), []

    def outdated(*_):
        both.wait(10)
        return False

    (known,) = replay._known[model].values()
    monkeypatch.setattr(known, "holds", outdated)

    def infer():
        with torch.no_grad():
            results.append(model(input))

    threads = [threading.Thread(target=infer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(torch.equal(result, expected) for result in results)


@torch.no_grad()
def test_a_pass_that_would_not_be_repeated_is_not_kept():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    model.register_forward_hook(lambda module, args, output: None)
    model(_cases.randn((2, 3, 4, 4)))
    assert model not in replay._known


@torch.no_grad()
def test_a_weight_that_is_neither_contiguous_nor_channels_last_is_computed_with_but_not_repeated():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    before = model(input)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        assert replay.replay([model], input) is not None
        model.to(memory_format=memory_format)
        torch.testing.assert_close(model(input), before)
    model[0].weight.data = model[0].weight.mT.contiguous().mT
    torch.testing.assert_close(model(input), before)
    assert replay.replay([model], input) is None


@torch.no_grad()
def test_a_pass_with_a_layer_that_works_in_place_is_not_repeated_without_it():
    torch.manual_seed(0)
    model = FusedSequential(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(3, 4, 3, padding=1)).eval()
    input = _cases.randn((2, 3, 4, 4))
    expected = unfuse(copy.deepcopy(model))(input.clone())
    for _ in range(2):
        torch.testing.assert_close(model(input.clone()), expected, rtol=1e-4, atol=1e-5)


class Negated(nn.Conv2d):
    def forward(self, input):
        return -super().forward(input)


@torch.no_grad()
def test_chains_of_the_same_first_layer_are_told_apart():
    conv, relu, tanh = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Tanh()
    input = _cases.randn((2, 3, 4, 4))
    raw = conv(input)
    with use_backend("native"):
        for _ in range(2):
            torch.testing.assert_close(run_in_turn([conv, relu], input), relu(raw), rtol=1e-4, atol=1e-5)
        assert replay.replay([conv, relu], input) is not None
        torch.testing.assert_close(run_in_turn([conv, tanh], input), tanh(raw), rtol=1e-4, atol=1e-5)
        assert replay.replay([conv, tanh], input) is not None
        conv.__class__ = Negated
        torch.testing.assert_close(run_in_turn([conv, tanh], input), tanh(-raw), rtol=1e-4, atol=1e-5)


class OfOthers(nn.GELU):
    """A class outside of torch.nn."""


def blocks_around(*layers):
    torch.manual_seed(0)
    model = FusedSequential(
        nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.Tanh(), *layers, nn.Sequential(nn.ConvTranspose2d(5, 4, 4, 2, 1), nn.Tanh())
    ).eval()  # fmt: skip
    model[-1].__class__ = FusedSequential
    return model


@torch.no_grad()
def test_blocks_among_layers_of_others_are_repeated_run_by_run():
    model = blocks_around(OfOthers())
    input = _cases.randn((2, 3, 4, 4))
    expected = unfuse(copy.deepcopy(model))(input)
    torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)
    known = [replay._known[layer] for layer in (model[0], model[3][0])]
    torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)
    assert [replay._known[layer] for layer in (model[0], model[3][0])] == known
    model[3][1] = nn.Sigmoid()
    model[0].bias.add_(1)
    torch.testing.assert_close(model(input), unfuse(copy.deepcopy(model))(input), rtol=1e-4, atol=1e-5)


CHANGES_AMONG_OTHERS = {
    "a block's": lambda m: m[0].bias.data.add_(1),
    "the memory of a later block's": lambda m: setattr(m[4][0].bias, "data", torch.ones(4)),
    "the values of a layer between": lambda m: m[2].weight.data.fill_(3),
    "a layer between": lambda m: m.__setitem__(2, nn.GELU()),
    "a hook of a layer between": lambda m: m[2].register_forward_hook(lambda module, args, output: 2 * output),
    "a layer inside": lambda m: m[4].__setitem__(1, nn.Sigmoid()),
    "the mode of a normalisation": lambda m: m[3].train(),
}


@pytest.mark.parametrize("change", CHANGES_AMONG_OTHERS)
@torch.no_grad()
def test_blocks_among_other_layers_are_repeated_with_them(change):
    model = blocks_around(nn.PReLU(), nn.BatchNorm2d(5).eval())
    input = _cases.randn((2, 3, 4, 4))
    expected = unfuse(copy.deepcopy(model))(input)
    torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(replay.replay([model], input), expected, rtol=1e-4, atol=1e-5)
    CHANGES_AMONG_OTHERS[change](model)
    changed = unfuse(copy.deepcopy(model))(input)
    assert not torch.allclose(changed, expected)
    for _ in range(2):
        torch.testing.assert_close(model(input), changed, rtol=1e-4, atol=1e-5)


CHANGES_OF_PADDING = {
    "the mode of the padding": lambda m: setattr(m[0], "padding_mode", "circular"),
    "the memory of the first": lambda m: setattr(m[0].bias, "data", torch.ones(8)),
    "the memory of a later one": lambda m: setattr(m[3].bias, "data", torch.ones(8)),
}


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("change", CHANGES_OF_PADDING)
@torch.no_grad()
def test_blocks_that_pad_with_what_is_in_the_image_are_repeated(change, backend):
    torch.manual_seed(0)
    model = FusedSequential(
        *(nn.Conv2d(8, 8, 4, 2, 1, padding_mode="reflect"), nn.BatchNorm2d(8), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(8, 8, 3, 1, 1, padding_mode="replicate"), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()),
    ).eval()
    input = _cases.randn((2, 8, 16, 16))
    expected = unfuse(copy.deepcopy(model))(input)
    with use_backend(backend):
        torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(replay.replay([model], input), expected, rtol=1e-4, atol=1e-5)
        CHANGES_OF_PADDING[change](model)
        changed = unfuse(copy.deepcopy(model))(input)
        assert not torch.allclose(changed, expected)
        for _ in range(2):
            torch.testing.assert_close(model(input), changed, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_layer_before_a_part_that_is_out_of_date_runs_once():
    model = blocks_around(nn.Dropout(0.5).train())
    input = _cases.randn((2, 3, 4, 4))
    model(input)
    assert replay.replay([model], input) is not None
    model[3][0].bias.data = torch.ones(4)
    outputs = []
    for m in (model, unfuse(copy.deepcopy(model)), model):
        torch.manual_seed(1)
        outputs.append(m(input))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("change", ["size", "dtype"])
def test_what_a_layer_between_hands_on_may_change(change):
    model = blocks_around(nn.AdaptiveAvgPool2d(6))
    input = _cases.randn((2, 3, 4, 4))
    model(input)
    (known,) = replay._known[model].values()
    assert known.holds(model, input)
    # as of a layer whose output depends on more than its input's shape
    forward = {"size": lambda x: x[:, :, :3], "dtype": lambda x: x.double()}[change]
    known.parts[1].layers[0] = forward
    if change == "dtype":
        with pytest.raises(RuntimeError, match="type"):
            known.run(model, input)
    else:
        expected = model[3][0](forward(nn.Sequential(*model[:2])(input))).tanh()
        torch.testing.assert_close(known.run(model, input), expected, rtol=1e-4, atol=1e-5)
    assert not known.holds(model, input)


@torch.no_grad()
def test_a_pass_that_cannot_be_kept_keeps_no_chain(monkeypatch):
    model = blocks_around(nn.PReLU())
    model[3][0].weight.data = model[3][0].weight.mT.contiguous().mT
    numbers = []
    monkeypatch.setattr(
        replay, "_KeptChain", lambda number, *_, of=replay._KeptChain: numbers.append(number) or of(number, *_)
    )
    input = _cases.randn((2, 3, 4, 4))
    model(input)
    assert model not in replay._known
    assert [torch.ops.genimg_fast.block_chain_repeat(input, number) for number in numbers] == [None]


@pytest.mark.usefixtures("small_layers_left")
@torch.no_grad()
def test_blocks_that_pytorch_runs_faster_are_repeated_among_those_of_the_kernels():
    torch.manual_seed(0)
    pointwise, head = nn.Conv2d(5, 4, 1), nn.Conv2d(3, 3, 1)
    layers = [
        head,
        nn.ReLU(),
        nn.ConvTranspose2d(3, 5, 4, 2, 1),
        pointwise,
        nn.Tanh(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1),
    ]
    input = _cases.randn((2, 3, 4, 4))
    plain = nn.Sequential(*copy.deepcopy(layers))
    torch.testing.assert_close(run_in_turn(layers, input), plain(input), rtol=1e-4, atol=1e-5)
    repeated = replay.replay(layers, input)
    assert repeated is not None
    torch.testing.assert_close(repeated, plain(input), rtol=1e-4, atol=1e-5)
    for model in (layers, plain):
        model[3].weight.data.add_(1)
        model[5].bias.data.add_(1)
    torch.testing.assert_close(run_in_turn(layers, input), plain(input), rtol=1e-4, atol=1e-5)
    there = weakref.ref(head)
    del layers, head
    gc.collect()
    assert there() is None
    layers = [pointwise, nn.ReLU()]
    run_in_turn(layers, _cases.randn((2, 5, 4, 4)))
    assert pointwise not in replay._known  # nothing of it is the kernels'


@torch.no_grad()
def test_a_run_at_the_start_of_longer_chain_is_kept():
    conv, relu, gelu = nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU(), nn.GELU()
    input = _cases.randn((2, 3, 4, 4))
    run_in_turn([conv, relu, gelu], input)
    known = replay._known[conv]
    run_in_turn([conv, relu, gelu], input)
    assert replay._known[conv] is known


class ActivatedBefore(nn.Module):
    """As residual blocks call their convolutions: the layers that feed each other begin with a function."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return torch.tanh(self.conv(F.leaky_relu(x, 0.2)))


@torch.no_grad()
def test_a_pass_that_begins_with_a_function(monkeypatch):
    monkeypatch.undo()
    plain = ActivatedBefore()
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = _cases.randn((2, 16, 8, 8))
    with use_backend("native"):
        for _ in range(2):
            for _ in range(3):
                torch.testing.assert_close(fused(x), plain(x))
            assert replay.replay([fused.conv, Call(torch.tanh, (), {})], F.leaky_relu(x, 0.2)) is not None
            for model in (fused, plain):
                model.conv.weight.mul_(1.5)


@torch.no_grad()
def test_a_head_that_levels_share_is_repeated_on_each():
    """A convolution on images of several sizes, with a batch normalisation of its own for each."""
    conv, norms = nn.ConvTranspose2d(3, 5, 4, 2, 1), [nn.BatchNorm2d(5).eval() for _ in range(2)]
    passes = [([conv, norm], _cases.randn((2, 3, size, size))) for norm in norms for size in (4, 8, 12)]
    before = [run_in_turn(*each) for each in passes]
    for each, expected in zip(passes, before, strict=True):
        assert torch.equal(replay.replay(*each), expected)
    norms[1].bias += 1
    conv.weight *= 1
    for each, expected, moved in zip(passes, before, [0, 0, 0, 1, 1, 1], strict=True):
        assert replay.replay(*each) is None
        torch.testing.assert_close(run_in_turn(*each), expected + moved)
    for side in range(2, 40):
        run_in_turn([conv], _cases.randn((1, 3, side, side)))
    assert len(replay._known[conv]) == 8


class Around(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Around(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@torch.no_grad()
def test_a_chain_of_one_sequential_is_not_taken_for_its_layers():
    model, input = Listed().eval(), _cases.randn((2, 16, 32, 32))
    fuse(model)
    del model.layers[1]
    expected = input + unfuse(copy.deepcopy(model)).layers[0][0](input).relu()
    for _ in range(3):
        torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)


def test_what_was_built_in_inference_mode_has_no_versions():
    with torch.inference_mode():
        model = nn.Sequential(
            nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
        ).eval()  # fmt: skip
        input = _cases.randn((16, 16, 96, 96))
        expected = model(input)
        fuse(model)
        for _ in range(2):
            torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_parameter_as_input_is_repeated_too():
    model, input = blocks_around(nn.PReLU()), nn.Parameter(_cases.randn((2, 3, 4, 4)))
    model(input.data)
    known = replay._known[model]
    model(input)
    assert replay._known[model] is known


@torch.no_grad()
def test_an_image_without_a_batch_between_the_blocks():
    layers = [nn.ConvTranspose2d(3, 4, 4, 2, 1), nn.Flatten(0, 1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]
    model, input = FusedSequential(*layers).eval(), _cases.randn((1, 3, 16, 16))
    for _ in range(2):
        torch.testing.assert_close(model(input), nn.Sequential(*layers)(input), rtol=1e-4, atol=1e-5)


class Valued(FusedSequential):
    """Equal to all that have as many layers."""

    def __eq__(self, other):
        return isinstance(other, Valued) and len(self) == len(other)

    def __hash__(self):
        return len(self)


@torch.no_grad()
def test_models_that_are_equal_are_told_apart():
    input = _cases.randn((2, 3, 4, 4))
    models = [Valued(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval() for _ in range(2)]
    for _ in range(2):
        for model in models:
            torch.testing.assert_close(model(input), nn.Sequential(*model)(input))


def two_deconvolutions():
    return FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(5, 4, 4, 2, 1)).eval()


@torch.no_grad()
def test_transforms_after_a_pass_was_recorded():
    model, input = two_deconvolutions(), _cases.randn((2, 3, 4, 4))
    expected = model(input)
    assert replay.replay([model], input) is not None
    mapped = torch.vmap(model)(torch.stack([input, input]))
    torch.testing.assert_close(mapped, torch.stack([expected, expected]), rtol=1e-4, atol=1e-5)
    _, got = torch.func.jvp(model, (input,), (torch.ones_like(input),))
    _, want = torch.func.jvp(unfuse(copy.deepcopy(model)), (input,), (torch.ones_like(input),))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_repeated_lies_in_the_order_of_the_first_output():
    model, input = two_deconvolutions(), _cases.randn((2, 3, 4, 4))
    first, again = model(input), replay.replay([model], input)
    assert again.is_contiguous()
    assert again.stride() == first.stride()


@torch.no_grad()
def test_a_model_that_became_another_dtype():
    model, input = two_deconvolutions(), _cases.randn((2, 3, 4, 4))
    model(input)
    assert replay.replay([model], input) is not None
    model.double()
    torch.testing.assert_close(model(input.double()), unfuse(copy.deepcopy(model))(input.double()))
