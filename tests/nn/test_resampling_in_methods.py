# SPDX-License-Identifier: MIT
"""`fuse` on a resampling and its convolution that a method calls, however it is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import _cases
from tests.nn._resampling import fused_and_plain, joined, results


class ByKeywords(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.conv = nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(F.interpolate(x, None, **self.options)))


class ByPositions(ByKeywords):
    def forward(self, x):
        return F.relu(self.conv(F.interpolate(x, None, self.options["scale_factor"], "nearest")))


class Recomputing(ByKeywords):
    def forward(self, x):
        return F.relu(self.conv(F.interpolate(x, scale_factor=2, recompute_scale_factor=True)))


class Smooth(ByKeywords):
    def forward(self, x):
        return F.relu(self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)))


class ToSize(ByKeywords):
    def forward(self, x):
        return F.relu(self.conv(F.interpolate(x, (10, 12))))


@pytest.mark.parametrize(
    ("model", "joins"),
    [
        (lambda: ByPositions(scale_factor=2), True),
        (lambda: ByPositions(scale_factor=2.0), True),
        (lambda: ByPositions(scale_factor=[2, 2]), True),
        (lambda: ByPositions(scale_factor=1.5), False),
        (lambda: ByKeywords(scale_factor=2), False),  # of which the source does not tell the names
        (Recomputing, True),
        (Smooth, False),
        (ToSize, False),
    ],
)
def test_of_a_function(model, joins):
    fused, plain = fused_and_plain(model)
    x = _cases.randn((2, 8, 5, 6), torch.float64)
    assert joined(fused, x) is joins
    torch.testing.assert_close(results(fused, x), results(plain, x))


class Layers(nn.Module):
    """Layers that the forward() of each class below calls in its own way."""

    def __init__(self, upsample=True):
        super().__init__()
        self.upsample, self.reflect = upsample, True
        self.up, self.pad = nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1)
        self.head, self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)


class InThreeStatements(Layers):
    def forward(self, x):
        x = self.up(x)
        x = self.pad(x)
        x = self.conv(x)
        return x


class UnderConditions(Layers):
    def forward(self, x):
        if self.upsample:
            x = self.up(x)
        if self.reflect:
            x = self.pad(x)
        x = self.norm(self.conv(x))
        return x


class Renaming(Layers):
    """As in PyTorch's example of fast neural style."""

    def forward(self, x):
        x_in = x
        if self.upsample:
            x_in = F.interpolate(x_in, mode="nearest", scale_factor=2)
        out = self.pad(x_in)
        out = self.conv(out)
        return out


class ReadLater(Layers):
    """What is upsampled is also added."""

    def forward(self, x):
        if self.upsample:
            x = self.up(x)
        y = self.conv(self.pad(x))
        return x + y


class InLoop(Layers):
    """It is upsampled twice, of which the second time starts from the first."""

    def forward(self, x):
        x_in = x
        for _ in range(2):
            if self.upsample:
                x_in = self.up(x_in)
            out = self.conv(self.pad(x_in))
        return out


class NeverSet(Layers):
    """Both conditions are false: nobody reads `h`."""

    def forward(self, x):
        if not self.upsample:
            h = self.up(x)
        if not self.upsample:
            h = self.up(h)
        if not self.upsample:
            h = self.conv(h)
        return F.relu(self.head(x))


class SetInForward(Layers):
    def forward(self, x):
        self.late = {"upsample": True}
        if self.late["upsample"]:
            x = self.up(x)
        x = self.norm(self.conv(x))
        return F.relu(self.head(x))


class Remembering(nn.Sequential):
    def forward(self, x):
        self.seen = bool(x.mean() > 0)
        return super().forward(x)


class AsksWhatWasSeen(Layers):
    def __init__(self):
        super().__init__()
        self.block = Remembering(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.block.seen = False

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2)
        x = self.block(x)
        if self.block.seen:
            x = torch.tanh(x)
        return x


class AsAnArgument(Layers):
    """As the residual blocks of SNGAN: which layer it is, the method does not say."""

    def upsampled(self, x, layer):
        return layer(F.interpolate(x, scale_factor=2))

    def forward(self, x):
        x = self.upsampled(x, self.head) if self.upsample else self.head(x)
        return self.upsampled(x, F.relu) + self.upsampled(x, lambda x: -x)


class AsArguments(Layers):
    """In two statements, and with a normalisation that is given too."""

    def block(self, x, layer, norm=None, activation=torch.tanh):
        x = self.up(x) if self.upsample else x
        x = F.interpolate(x, scale_factor=2)
        x = layer(x)
        x = norm(x)
        return activation(x)

    def forward(self, x):
        return self.block(x, self.head, self.norm) + self.block(x, norm=self.norm, layer=self.head)


class AnotherArgument(Layers):
    """What is called is no longer what was given."""

    def upsampled(self, x, layer):
        x = F.interpolate(x, scale_factor=2)
        layer = self.norm if layer is None else layer
        return layer(x)

    def forward(self, x):
        return self.upsampled(x, None) + self.upsampled(x, self.head)


WRITTEN = {  # and whether the convolution sees the image before the upsampling
    InThreeStatements: True,
    UnderConditions: True,
    Renaming: True,
    ReadLater: False,
    InLoop: False,
    NeverSet: False,
    SetInForward: False,
    AsksWhatWasSeen: False,
    AsAnArgument: True,
    AsArguments: True,
    AnotherArgument: False,
}


@pytest.mark.parametrize("written", WRITTEN)
def test_however_it_is_written(written):
    fused, plain = fused_and_plain(written)
    x = _cases.randn((2, 8, 5, 6), torch.float64)
    assert joined(fused, x) is WRITTEN[written]
    for training in (True, False):
        for upsample in (True, False, True) if written is not NeverSet else (True,):
            for model in (fused, plain):
                model.train(training).upsample = upsample
            for image in (x, -x):
                torch.testing.assert_close(results(fused, image), results(plain, image))
                with torch.no_grad():
                    for _ in range(3):
                        torch.testing.assert_close(fused(image), plain(image))


@pytest.mark.usefixtures("recorded_at_once")
@torch.no_grad()
def test_an_upsampling_before_the_convolution_is_told_from_one_after_it():
    """The same layers, on an image of the same size, in another order."""

    class BothWays(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)

        def before(self, x):
            return self.norm(self.conv(F.interpolate(x, scale_factor=2)))

        def after(self, x):
            return self.norm(F.interpolate(self.conv(x), scale_factor=2))

        def forward(self, x):
            return self.before(x), self.after(x)

    fused, plain = fused_and_plain(BothWays, torch.float32)
    x = _cases.randn((2, 8, 4, 4))
    for _ in range(4):
        torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("recorded_at_once")
@torch.no_grad()
def test_a_pass_that_starts_with_a_function_is_repeated(monkeypatch):
    fused, plain = fused_and_plain(lambda: ByPositions(scale_factor=2), torch.float32)
    x = _cases.randn((2, 8, 4, 4))
    fused.eval()(x)
    monkeypatch.setattr("genimg_fast.nn.sequential.plan", None)  # which is not asked again
    torch.testing.assert_close(fused(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
