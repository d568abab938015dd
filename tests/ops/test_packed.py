# SPDX-License-Identifier: MIT
"""Packed weights are kept in inference, and for no longer than the weights stay what they are."""

from __future__ import annotations

import contextlib
import copy
import threading
from itertools import product

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from genimg_fast import _backend, functional, unfuse
from genimg_fast.backends import cpu
from genimg_fast.nn import FusedSequential
from genimg_fast.ops import _packed
from tests import _cases
from tests.ops._chains import generator


@pytest.fixture(autouse=True)
def native():
    """Whatever is faster."""
    with _backend.use_backend("native"):
        yield


@pytest.fixture
def packings(monkeypatch):
    """How many weights were packed, each time."""
    counts = []
    original = torch.ops.genimg_fast.block_chain_pack

    class Ops:
        def __getattr__(self, name):
            return getattr(namespace, name)

        def block_chain_pack(self, *args):
            counts.append(len(args[-1]))
            return original(*args)

    namespace = torch.ops.genimg_fast
    monkeypatch.setattr(torch.ops, "genimg_fast", Ops())
    return counts


def edit_in_place(model):
    with torch.no_grad():
        model[3].weight.mul_(2)


def edit_data(model):
    model[3].weight.data.mul_(2)


def replace(model):
    model[3].weight = nn.Parameter(2 * model[3].weight.detach())


def point_elsewhere(model):
    model[3].weight.data = 2 * model[3].weight.data


def load(model):
    state = model.state_dict()
    model.load_state_dict({**state, "3.weight": 2 * state["3.weight"]})


def take_a_step(model):
    model[3].weight.grad = -model[3].weight.detach()
    torch.optim.SGD([model[3].weight], lr=1.0).step()


@pytest.mark.parametrize("edit", [edit_in_place, edit_data, replace, point_elsewhere, load, take_a_step])
def test_an_edited_weight_is_packed_anew(packings, edit):
    model, input = generator().eval(), _cases.randn((3, 6, 2, 2))
    with torch.no_grad():
        model(input)
        model(input)
        assert len(packings) == 1
        edit(model)
        torch.testing.assert_close(model(input), unfuse(copy.deepcopy(model))(input), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("layer", [nn.Conv2d(20, 48, 3), nn.ConvTranspose2d(48, 20, 4, 2, 1), nn.Conv2d(2, 3, (5, 4))])
@torch.no_grad()
def test_a_unit_edited_past_the_version_counter_is_noticed(layer, memory_format):
    model = FusedSequential(copy.deepcopy(layer)).eval().to(memory_format=memory_format)
    plain, weight = unfuse(copy.deepcopy(model)), model[0].weight
    input = _cases.randn((3, layer.in_channels, 6, 6))
    units = [((slice(None),) * d + (i,)) for d in (0, 1) for i in range(weight.shape[d])]
    units += [(slice(None), slice(None), *tap) for tap in product(*map(range, weight.shape[2:]))]
    for unit in units:
        weight.add_(0)  # or what was packed before the last edit would be out of date in every pass from then on
        model(input)
        weight.data[unit] += 1
        plain[0].weight[unit] += 1
        torch.testing.assert_close(model(input), plain(input), rtol=1e-4, atol=1e-3)


def test_packed_weights_follow_the_settings_and_the_shape(packings):
    model, input = generator().eval(), _cases.randn((3, 6, 2, 2))
    expected = unfuse(copy.deepcopy(model))(input)

    def check():
        with torch.no_grad():
            torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)

    check()
    for variant in cpu.VARIANTS:
        with cpu.force_variant(variant):
            check()
            so_far = sum(packings)
            check()
            assert sum(packings) == so_far
    with torch.no_grad():
        for n in (1, 2, 5, 7):
            torch.testing.assert_close(
                model(input[:1].repeat(n, 1, 1, 1)), expected[:1].repeat(n, 1, 1, 1), rtol=1e-4, atol=1e-5
            )


@torch.no_grad()
def test_a_weight_is_packed_once_for_images_of_all_sizes(packings):
    model = FusedSequential(nn.ConvTranspose2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 16, 3, 1, 1)).eval()
    plain = unfuse(copy.deepcopy(model))
    with cpu.force_variant("toom_cook_2"):
        for shape in ((1, 5, 6), (3, 9, 4), (2, 16, 16)):
            input = _cases.randn((shape[0], 16, *shape[1:]))
            torch.testing.assert_close(model(input), plain(input), rtol=1e-4, atol=1e-4)
    assert packings == [2]


@pytest.mark.parametrize("kernel", [(3, 1, 1), (4, 2, 1), (4, 2, 3), (4, 1, 0), (5, 2, 2), (2, 2, 0)])
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
@torch.no_grad()
def test_a_weight_serves_images_of_one_row_or_column_beside_others(layer, kernel):
    """Whose taps a transposed convolution takes in another order."""
    conv = layer(8, 4, *kernel)
    sizes = [(h, w) for h in (1, 2, 3, 6) for w in (1, 2, 3, 5)]
    images = []
    for size in sizes:
        with contextlib.suppress(RuntimeError):  # of an image that is too small
            image = _cases.randn((1, 8, *size))
            images += [image] if conv(image).numel() else []
    for first, second in product(images, repeat=2):
        model = FusedSequential(copy.deepcopy(conv)).eval()
        model(first)
        torch.testing.assert_close(model(second), conv(second), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_else_is_packed_of_a_weight_goes_when_it_changes():
    model, input = FusedSequential(nn.ConvTranspose2d(16, 32, 4, 2, 1)).eval(), _cases.randn((1, 16, 8, 8))
    for variant in cpu.VARIANTS:
        with cpu.force_variant(variant):
            model(input)
    weight = model[0].weight
    assert 1 < len(_packed._kept[weight]) <= _packed._WAYS
    weight.mul_(2)
    model(input)
    assert len(_packed._kept[weight]) == 1


def test_packed_weights_live_as_long_as_the_model_and_not_through_training():
    model, input = generator().eval(), _cases.randn((3, 6, 2, 2))
    before, weights = len(_packed._kept), [p for p in model.parameters() if p.dim() == 4]
    with torch.no_grad():
        model(input)
    assert len(_packed._kept) == before + len(weights)
    model.train()(input)
    assert len(_packed._kept) == before
    with torch.no_grad():
        model.eval()(input)
    copy.deepcopy(model)
    del model, weights
    assert len(_packed._kept) == before


def test_a_frozen_part_of_what_trains_keeps_no_packed_weights():
    model, input = generator().eval(), _cases.randn((3, 6, 2, 2))
    model[:3].requires_grad_(False)
    model(input)
    assert model[0].weight not in _packed._kept
    model.requires_grad_(False)
    model(input)
    assert model[0].weight in _packed._kept


@torch.no_grad()
def test_threads_that_pack_the_same_weights_for_different_shapes(monkeypatch):
    model = generator().eval()
    inputs = [_cases.randn((n, 6, 1, 1)) for n in range(1, 8)]
    expected = [unfuse(copy.deepcopy(model))(input) for input in inputs]
    original, others = _packed._remember, iter(inputs[1:])

    def remember(*args):
        if (input := next(others, None)) is not None:  # between any two weights of the thread that packs
            thread = threading.Thread(target=torch.no_grad()(model), args=(input,))
            thread.start()
            thread.join()
        original(*args)

    monkeypatch.setattr(_packed, "_remember", remember)
    for input, output in zip(inputs, expected, strict=True):
        torch.testing.assert_close(model(input), output, rtol=1e-4, atol=1e-5)
    assert next(others, None) is None
    assert len(_packed._kept[model[0].weight]) <= _packed._WAYS


@pytest.mark.parametrize("backend", ["auto", "native"])
@torch.no_grad()
def test_one_weight_of_several_convolutions(backend):
    """As in an autoencoder whose decoder has the weights of its encoder."""
    kinds = [(nn.Conv2d, options) for options in ((4, 2, 1), (4, 1, 1), (4, 2, 0), (4, 1, 3, 2))]
    kinds += [(nn.ConvTranspose2d, options) for options in ((4, 2, 1), (4, 1, 1), (4, 2, 0), (4, 3, 1, 1))]
    weight = nn.Parameter(_cases.randn((64, 64, 4, 4)) / 32)
    models = [FusedSequential(kind(64, 64, *options, bias=False), nn.Tanh()) for kind, options in kinds]
    for model in models:
        model[0].weight = weight
    with _backend.use_backend(backend):
        for model in (*models, *reversed(models)):
            for n in (2, 3):
                input = _cases.randn((n, 64, 8, 8))
                expected = unfuse(copy.deepcopy(model))(input)
                torch.testing.assert_close(model(input), expected, rtol=1e-4, atol=1e-5)


def test_weights_made_in_inference_mode_are_not_kept(packings):
    with torch.inference_mode():
        model, input = generator().eval(), _cases.randn((3, 6, 2, 2))
        torch.testing.assert_close(model(input), unfuse(copy.deepcopy(model))(input), rtol=1e-4, atol=1e-5)
    assert not packings


def test_make_fx_bakes_no_packed_weight():
    weight, x = torch.nn.Parameter(_cases.randn((8, 8, 3, 3))), _cases.randn((2, 8, 8, 8))
    with torch.no_grad():
        functional.conv2d_bn_act(x, weight, padding=1)  # packs it
        recorded = make_fx(lambda x, w: functional.conv2d_bn_act(x, w, padding=1))(x, weight)
        weight[0, 0, 0, 1] += 1  # which is not sampled
        torch.testing.assert_close(recorded(x, weight), torch.nn.functional.conv2d(x, weight, padding=1))
