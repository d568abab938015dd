# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from genimg_fast.nn import Conv2dBNAct, ConvTranspose2dBNAct, FusedSequential
from tests import _cases
from tests.nn._sequential import IMAGES, assert_same_training

CASES = {
    "generator": (
        lambda: ConvTranspose2dBNAct(4, 6, 4, 2, 1),
        lambda: [nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()],
    ),
    "generator, all arguments": (
        lambda: ConvTranspose2dBNAct(
            *(4, 6, (3, 4), 3, 1, 2),
            **{"groups": 2, "dilation": 2, "bias": True, "activation": "sigmoid", "eps": 0.1, "momentum": 0.3},
        ),
        lambda: [
            nn.ConvTranspose2d(4, 6, (3, 4), 3, 1, 2, groups=2, dilation=2),
            nn.BatchNorm2d(6, eps=0.1, momentum=0.3),
            nn.Sigmoid(),
        ],
    ),
    "last of a generator": (
        lambda: ConvTranspose2dBNAct(4, 3, 4, 2, 1, batch_norm=False, activation="tanh"),
        lambda: [nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh()],
    ),
    "encoder": (
        lambda: Conv2dBNAct(4, 6, 4, 2, 1, activation="leaky_relu", negative_slope=0.2),
        lambda: [nn.Conv2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.LeakyReLU(0.2)],
    ),
    "encoder, all arguments": (
        lambda: Conv2dBNAct(
            *(4, 6, (3, 2), 2, 1), **{"groups": 2, "dilation": 2, "bias": True, "eps": 0.1, "momentum": 0.3}
        ),
        lambda: [
            nn.Conv2d(4, 6, (3, 2), 2, 1, groups=2, dilation=2),
            nn.BatchNorm2d(6, eps=0.1, momentum=0.3),
            nn.ReLU(),
        ],
    ),
    "convolution alone": (
        lambda: Conv2dBNAct(4, 6, 3, bias=False, batch_norm=False, activation="none"),
        lambda: [nn.Conv2d(4, 6, 3, bias=False)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_is_one_fused_call_equal_to_its_layers(case):
    block, layers = CASES[case]
    torch.manual_seed(0)
    fused = block()
    torch.manual_seed(0)
    plain = nn.Sequential(*layers())
    assert [str(child) for child in fused] == [str(child) for child in plain]
    assert len(fused.plan()) == 1
    assert fused.plan()[0].kind is not None
    assert_same_training(fused.double(), plain.double(), _cases.randn(IMAGES, torch.float64, 1))


def test_dtype_is_that_of_all_parameters():
    for block in (Conv2dBNAct, ConvTranspose2dBNAct):
        dtypes = {name: t.dtype for name, t in block(2, 2, 1, dtype=torch.float64).state_dict().items()}
        assert dtypes.pop("1.num_batches_tracked") == torch.int64
        assert set(dtypes.values()) == {torch.float64}


def test_copies_pickles_and_slices():
    block = Conv2dBNAct(2, 3, 1)
    assert type(copy.deepcopy(block)) is Conv2dBNAct
    assert type(pickle.loads(pickle.dumps(block))) is Conv2dBNAct
    assert type(block[:2]) is FusedSequential
    assert block[:2][0] is block[0]


def test_unknown_activation_gets_one_clear_line():
    for block in (Conv2dBNAct, ConvTranspose2dBNAct):
        with pytest.raises(ValueError, match=r"BNAct: activation must be one of 'none', 'relu', .*, got 'gelu'"):
            block(2, 2, 1, activation="gelu")


@pytest.mark.parametrize(("block", "plain"), [(Conv2dBNAct, nn.Conv2d), (ConvTranspose2dBNAct, nn.ConvTranspose2d)])
def test_defaults_are_those_of_the_convolution(block, plain):
    assert str(block(2, 3, 4)[0]) == str(plain(2, 3, 4, bias=False))


@pytest.mark.parametrize("block", [Conv2dBNAct, ConvTranspose2dBNAct])
def test_device_is_that_of_all_parameters(block):
    assert {t.device.type for t in block(2, 2, 1, device="meta").state_dict().values()} == {"meta"}
