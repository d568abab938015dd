# SPDX-License-Identifier: MIT
"""`fuse` on layers that do nothing, at times: an identity, and dropouts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import genimg_fast
from tests import _cases
from tests.nn._resampling import results

DROPOUTS = [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout]
LAYERS = {
    "identity": (nn.Identity, True),
    "drops nothing": (lambda: nn.Dropout(0), True),
    "in inference": (lambda: nn.Dropout2d(0.5).eval(), True),
    "in inference, in place": (lambda: nn.Dropout(0.5, inplace=True).eval(), True),
    "drops": (lambda: nn.Dropout(0.5), False),
    "of another class": (lambda: type("Own", (nn.Dropout,), {})(0.0), False),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]


class InMethod(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.conv, self.bn, self.drop = nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), layer
        self.act, self.last = nn.ReLU(), nn.Conv2d(6, 2, 3)

    def forward(self, x):
        x = self.drop(self.bn(self.conv(x)))
        return self.last(self.act(x))


def sequential(layer):
    """As MONAI's blocks."""
    conv, last = nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.Conv2d(6, 2, 3)
    return nn.Sequential(conv, nn.Sequential(nn.BatchNorm2d(6), layer, nn.ReLU()), last)


def training(make, layer):
    """With the layer in the mode that it has."""
    torch.manual_seed(0)
    layer = layer()
    mode = layer.training
    model = make(layer).train()
    layer.train(mode)
    return model


@pytest.mark.parametrize("make", [sequential, InMethod])
def test_what_stands_around_it_is_one_block(make, layer):
    layer, nothing = layer
    fused, plain = training(make, layer), training(make, layer)
    rows = genimg_fast.fuse(fused).fused
    assert (rows[0].description == "ConvTranspose2d + BatchNorm2d + ReLU") is nothing
    x = _cases.randn((3, 4, 5, 5))
    with genimg_fast.use_backend("native"):
        for _ in range(3):
            ours, theirs = [], []
            for model, found in ((fused, ours), (plain, theirs)):
                torch.manual_seed(1)  # a dropout draws the same
                found += results(model, x)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert genimg_fast.unfuse(fused)(x).shape == plain(x).shape


@pytest.mark.parametrize("make", [sequential, InMethod])
@pytest.mark.parametrize("dropout", DROPOUTS)
@torch.no_grad()
def test_a_dropout_that_begins_to_drop_is_called_again(make, dropout):
    """In inference with samples of the dropout, say, of which a kept pass knows nothing."""
    model = make(dropout(0.5)).eval()
    genimg_fast.fuse(model)
    drop = next(m for m in model.modules() if type(m) is dropout)
    x = _cases.randn((2, 4, 5, 5))
    with genimg_fast.use_backend("native"):
        (still,) = {tuple(model(x).flatten().tolist()) for _ in range(3)}
        drop.train()
        first, second = model(x), model(x)
        assert not torch.equal(first, second)
        drop.eval()
        torch.testing.assert_close(model(x).flatten(), torch.tensor(still))
        drop.p = 2.0
        with pytest.raises(ValueError, match="between 0 and 1"):
            model(x)


def test_it_is_called_where_it_has_hooks():
    model = sequential(nn.Dropout(0.0))
    seen = []
    model[1][1].register_forward_hook(lambda *_: seen.append(1))
    report = genimg_fast.fuse(model)
    model(_cases.randn((2, 4, 5, 5)))
    assert seen == [1]
    assert any(row.description == "ReLU" for row in report.not_fused)


def test_nothing_but_such_layers():
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.0))
    plain = copy.deepcopy(model)
    assert genimg_fast.fuse(model).rows == ()
    x = _cases.randn((2, 4))
    assert torch.equal(model(x), plain(x))
