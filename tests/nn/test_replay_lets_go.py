# SPDX-License-Identifier: MIT
"""What a pass is repeated from is held for no longer than the pass may be repeated."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from genimg_fast import fuse, unfuse
from genimg_fast.nn import FusedSequential, replay
from genimg_fast.ops import _packed
from tests import _cases

pytestmark = pytest.mark.usefixtures("recorded_at_once")


@torch.no_grad()
def test_a_chain_is_kept_for_as_long_as_it_may_be_repeated():
    repeat = torch.ops.genimg_fast.block_chain_repeat
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    input = _cases.randn((2, 3, 4, 4))
    expected = model(input)
    (known,) = replay._known[model].values()
    (part,) = known.parts
    chain = part.chain.number
    del part
    del known
    assert torch.equal(repeat(input, chain), expected)
    assert repeat(input.double(), chain) is None
    del model
    gc.collect()
    assert repeat(input, chain) is None


@torch.no_grad()
def test_what_was_unfused_is_let_go():
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(5, 3, 4, 2, 1)).eval()
    model(_cases.randn((2, 3, 4, 4)))
    there = weakref.ref(model[2])
    unfuse(model)
    for p in model.parameters():  # which refuses tensors that others hold
        torch.utils.swap_tensors(p, nn.Parameter(p.double()))
    assert model[0].weight.dtype is torch.float64
    del model[2]
    gc.collect()
    assert there() is None


@pytest.mark.parametrize("side", [4, 64])  # which PyTorch trains faster, and which the kernels do
def test_a_model_that_trains_again_keeps_no_packed_weights(side):
    model = FusedSequential(nn.ConvTranspose2d(3, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1)).eval()
    input = _cases.randn((2, 3, side, side))
    with torch.no_grad():
        model(input)
    assert model in replay._known
    assert model[0].weight in _packed._kept
    model(input)  # as of a loss on features: the next pass without gradients repeats
    assert model in replay._known
    model.train()(input)
    assert model not in replay._known
    assert model[0].weight not in _packed._kept


class Owned:
    def __init__(self, owner):
        self.owner = owner


REFERENCES = {
    "none": lambda m: None,
    "in a hook of a parameter": lambda m: m[0].weight.register_hook(lambda grad: grad if m.training else None),
    "in a list": lambda m: setattr(m[1], "owner", [m]),
    "in an object": lambda m: setattr(m[1], "helper", Owned(m)),
    "in a closure": lambda m: setattr(m[1], "of_owner", lambda: m.training),
    "a method": lambda m: setattr(m[1], "of_owner", m.modules),
    "in a parameter": lambda m: setattr(m[0].weight, "owner", m),
    "its own": lambda m: setattr(m, "all", [m]),
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_pass_that_is_repeated_does_not_keep_its_model(reference):
    model = FusedSequential(nn.ConvTranspose2d(3, 5, 4, 2, 1), nn.ReLU()).eval()
    REFERENCES[reference](model)
    model[0].config = {"sizes": [3, 5], "of": nn.Conv2d, "by": torch.nn}  # which leads nowhere
    with torch.no_grad():
        model(_cases.randn((2, 3, 4, 4)))
    assert (replay._known.get(model) is not None) == (reference == "none")
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.ConvTranspose2d(4, 4, 4, 2, 1), torch.relu

    def forward(self, x):
        x = self.act(self.conv(x))
        x = self.act(self.conv(x))
        return x


@pytest.mark.parametrize("own", [False, True])
def test_a_chain_that_leads_back_to_its_first_layer_does_not_keep_it(own):
    model = Twice().eval()
    fuse(model)
    if own:
        model.act = lambda x, of=model: x if of.training else x + 1
    with torch.no_grad():
        for _ in range(2):
            model(_cases.randn((2, 4, 4, 4)))
    there = weakref.ref(model.conv)
    del model
    gc.collect()
    assert there() is None
