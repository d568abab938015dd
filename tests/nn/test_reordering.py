# SPDX-License-Identifier: MIT
"""`fuse` on a convolution of kernel 1 and a resampling by two, of which the convolution is called on the smaller image."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import genimg_fast
from genimg_fast.ops import _speed
from tests import _cases
from tests.nn._resampling import fused_and_plain, results


class Shortcuts(nn.Module):
    """Beside what makes `fuse` look at the methods of a module at all."""

    def __init__(self):
        super().__init__()
        self.conv, self.up, self.down = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 7, 1), nn.Conv2d(7, 8, 1, bias=False)
        self.resample = True

    def larger(self, x):
        if self.resample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.up(x)
        return x

    def smaller(self, x):
        x = self.down(x)
        if self.resample:
            x = F.avg_pool2d(x, 2)
        return x

    def forward(self, x):
        return self.conv(x) + self.smaller(self.larger(x))


MODELS = {
    "a mean": lambda: nn.Sequential(nn.Conv2d(8, 5, 1), nn.AvgPool2d(2)),
    "an upsampling": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 1)),
    "groups": lambda: nn.Sequential(nn.Conv2d(8, 4, 1, groups=2), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.ReLU()),
    "between blocks": lambda: nn.Sequential(
        *(nn.Conv2d(8, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()),
        *(nn.Conv2d(5, 6, 1), nn.AvgPool2d(2), nn.LeakyReLU(0.1)),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(6, 5, 1, padding="same"), nn.Conv2d(5, 8, 3)),
    ),
    "in methods": Shortcuts,
}
OTHERS = {
    "kernel 3": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, (3, 1))),
    "a stride": lambda: nn.Sequential(nn.Conv2d(8, 5, 1, 2), nn.AvgPool2d(2)),
    "a padding": lambda: nn.Sequential(nn.Conv2d(8, 5, 1, padding=1), nn.AvgPool2d(2)),
    "a reflection": lambda: nn.Sequential(nn.Conv2d(8, 5, 1, padding=1, padding_mode="reflect"), nn.AvgPool2d(2)),
    "a transposed convolution": lambda: nn.Sequential(nn.ConvTranspose2d(8, 5, 1), nn.AvgPool2d(2)),
    "a normalisation after it": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5)),
    "a mean over three": lambda: nn.Sequential(nn.Conv2d(8, 5, 1), nn.AvgPool2d(3)),
    "a hook": lambda: _hooked(nn.Sequential(nn.Conv2d(8, 5, 1), nn.AvgPool2d(2))),
}  # fmt: skip


def _hooked(model: nn.Sequential) -> nn.Sequential:
    model[1].register_forward_hook(lambda module, args, output: output.abs())
    return model


@pytest.fixture(autouse=True)
def small_images_too(monkeypatch):
    monkeypatch.setattr(_speed, "_WORK_OF_REORDERING", 0)
    monkeypatch.setattr(_speed, "_WORK_OF_A_MEAN", 0)


def pixels(model: nn.Module, x: torch.Tensor) -> int:
    """How many pixels a pass of the model calls convolutions of kernel 1 on."""
    with mock.patch.object(F, "conv2d", mock.Mock(side_effect=F.conv2d)) as conv2d:
        copy.deepcopy(model)(x)
    images = [call.args[0] for call in conv2d.call_args_list if call.args[1].shape[2:] == (1, 1)]
    return sum(image.shape[2] * image.shape[3] for image in images)


@pytest.mark.parametrize("model", MODELS)
def test_gives_the_same_and_convolves_fewer_pixels(model):
    fused, plain = fused_and_plain(MODELS[model])
    for shape in ((2, 8, 6, 4), (1, 8, 7, 5)):
        x = _cases.randn(shape, torch.float64)
        for training in (True, False):
            fused.train(training), plain.train(training)
            assert pixels(fused, x) * 3 < pixels(plain, x)
            torch.testing.assert_close(results(fused, x), results(plain, x))
            with torch.no_grad():
                for _ in range(3):  # the third repeats the second
                    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("resample", [True, False])
def test_under_conditions(resample):
    fused, plain = fused_and_plain(Shortcuts)
    x = _cases.randn((2, 8, 6, 4), torch.float64)
    for model in (fused, plain):
        model.resample = resample
    torch.testing.assert_close(results(fused, x), results(plain, x))


@pytest.mark.parametrize("other", OTHERS)
def test_others_are_called_in_their_order(other):
    fused, plain = fused_and_plain(OTHERS[other])
    x = _cases.randn((2, 8, 6, 6), torch.float64)
    assert pixels(fused, x) == pixels(plain, x)
    torch.testing.assert_close(results(fused, x), results(plain, x))
    assert "reordered" not in [row.kind for row in genimg_fast.fuse(fused).rows]


@pytest.mark.parametrize("model", ["a mean", "an upsampling"])
def test_where_it_costs_more_to_find_out(model, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(_speed, "_WORK_OF_A_MEAN", 0)
    fused, plain = fused_and_plain(MODELS[model], torch.float32)
    small, large = _cases.randn((2, 8, 6, 4)), _cases.randn((8, 8, 64, 64))
    assert pixels(fused, small) == pixels(plain, small)
    assert pixels(fused, large) * 4 == pixels(plain, large)
    with genimg_fast.use_backend("reference"):
        assert pixels(fused, large) == pixels(plain, large)


@pytest.mark.parametrize(
    ("layers", "pays"),
    [
        ((nn.Conv2d(64, 16, 1), nn.AvgPool2d(2)), False),  # the mean would be of four times as many channels
        ((nn.Conv2d(256, 128, 1), nn.AvgPool2d(2)), True),
        ((nn.Conv2d(16, 64, 1), nn.AvgPool2d(2)), True),
        ((nn.Upsample(scale_factor=2), nn.Conv2d(16, 64, 1)), False),
        ((nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 1)), True),
    ],
    ids=str,
)
def test_the_channels_that_are_resampled_count(layers, pays, monkeypatch):
    monkeypatch.undo()
    fused, plain = fused_and_plain(lambda: nn.Sequential(*layers), torch.float32)
    x = _cases.randn((2, next(iter(plain.parameters())).shape[1], 32, 32))
    assert pixels(fused, x) * (4 if pays else 1) == pixels(plain, x)


def test_report():
    report = genimg_fast.fuse(Shortcuts())
    assert [(row.layers, row.description) for row in report.fused if row.kind == "reordered"] == [
        (("up",), "interpolate + Conv2d"),
        (("down",), "Conv2d + avg_pool2d"),
    ]


@pytest.mark.parametrize("model", MODELS)
def test_as_accurate_as_torch(model):
    fused, plain = fused_and_plain(MODELS[model], torch.float32)
    exact = copy.deepcopy(plain).double()
    x = _cases.randn((4, 8, 16, 12))
    ours, theirs, right = results(fused, x), results(plain, x), results(exact, x.double())
    names = ["output", "input", *(name for name, _ in plain.named_parameters())]
    for name, a, e, t in zip(names, ours, right, theirs, strict=False):
        if e.abs().max() > 1e-9:  # else of a bias before a normalisation
            _cases.assert_accurate(a, e, t, factor=_cases.ERROR_FACTOR_WINOGRAD, what=name)


@pytest.mark.parametrize("model", ["a mean", "an upsampling"])
@pytest.mark.parametrize("bad", [(2, 7, 4, 4), (2, 8, 1, 1), (8, 4, 4), (2, 8, 0, 4), (4, 4)], ids=str)
def test_bad_input_raises_what_the_layers_raise(model, bad):
    fused, plain = fused_and_plain(MODELS[model], torch.float32)
    results = []
    for each in (plain, fused):
        try:
            results.append(str(each(torch.zeros(bad)).shape))
        except Exception as error:
            results.append(f"{type(error)}: {error}")
    assert results[0] == results[1]


@pytest.mark.parametrize("model", MODELS)
def test_compiles_whole(model):
    torch._dynamo.reset()
    fused, plain = fused_and_plain(MODELS[model], torch.float32)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 3):
        x = _cases.randn((n, 8, 6, 4))
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
