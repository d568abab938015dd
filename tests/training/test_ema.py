# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy

import torch
from torch import nn

from genimg_fast.training.ema import EMA


def module():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_average_of_weights_and_statistics_and_copy_of_counters():
    source = module()
    ema = EMA(copy.deepcopy(source), decay=0.25)
    expected = {name: t.clone() for name, t in source.state_dict().items()}
    for n in range(1, 6):
        source(torch.randn(8, 3) * 3 + 1)  # moves the running statistics
        with torch.no_grad():
            for p in source.parameters():
                p.add_(torch.randn_like(p))
        ema.update(source)
        decay = min(0.25, (1 + n) / (10 + n))
        for name, value in source.state_dict().items():
            counter = not value.is_floating_point()
            expected[name] = value.clone() if counter else decay * expected[name] + (1 - decay) * value
    torch.testing.assert_close(ema.average.state_dict(), expected)
    assert ema.average[1].num_batches_tracked == 5
    assert not ema.average.training
    assert not any(p.requires_grad for p in ema.average.parameters())


def test_state_continues_where_it_was():
    source = module()
    straight, resumed = EMA(copy.deepcopy(source), 0.9), EMA(copy.deepcopy(source), 0.9)
    for n in range(6):
        with torch.no_grad():
            source[0].weight.add_(1)
        straight.update(source)
        if n == 3:
            resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
        elif n > 3:
            resumed.update(source)
    torch.testing.assert_close(straight.average.state_dict(), resumed.average.state_dict(), rtol=0, atol=0)
