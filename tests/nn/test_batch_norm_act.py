# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from torch import nn

from genimg_fast.nn.batch_norm_act import BatchNormAct1d, BatchNormAct2d
from tests import _cases


def pair(shape, **kwargs):
    """The module and its torch.nn twin, with the same state."""
    ours = (BatchNormAct1d if len(shape) < 4 else BatchNormAct2d)(shape[1], activation="leaky_relu", **kwargs)
    norm = (nn.BatchNorm1d if len(shape) < 4 else nn.BatchNorm2d)(shape[1], **kwargs)
    norm.load_state_dict(ours.state_dict())
    return ours, norm, nn.Sequential(norm, nn.LeakyReLU(0.01))


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 5)])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}, {"momentum": 0.4, "eps": 1e-2}],
    ids=str,
)
def test_equals_the_torch_modules_in_training_and_then_in_eval(shape, kwargs):
    ours, norm, twin = pair(shape, **kwargs)
    for step in range(3):
        x = 2 * _cases.randn(shape, seed=step) + 1
        torch.testing.assert_close(ours(x), twin(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(norm.state_dict()))
    ours.eval(), twin.eval()
    torch.testing.assert_close(ours(x), twin(x))


def test_running_statistics_can_be_switched_off_after_construction():
    ours, _, twin = pair((4, 3))
    ours.track_running_stats = twin[0].track_running_stats = False
    x = _cases.randn((4, 3))
    for mode in (True, False):
        torch.testing.assert_close(ours.train(mode)(x), twin.train(mode)(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(twin[0].state_dict()))


def test_is_a_batch_norm_and_says_its_activation():
    module = BatchNormAct2d(3, activation="leaky_relu", negative_slope=0.2)
    assert isinstance(module, nn.BatchNorm2d)
    assert repr(module).endswith("track_running_stats=True, activation='leaky_relu', negative_slope=0.2)")


def test_bad_input_gets_one_clear_line():
    with pytest.raises(ValueError, match=r"BatchNormAct1d: activation must be one of 'none', 'relu'.*got 'gelu'"):
        BatchNormAct1d(3, activation="gelu")
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNormAct2d(3)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        BatchNormAct1d(3)(torch.zeros(1, 3))
