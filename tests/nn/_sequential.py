# SPDX-License-Identifier: MIT
"""What a `FusedSequential` is compared with."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import nn

IMAGES = (3, 4, 5, 6)


def plain_twin(model: nn.Sequential) -> nn.Sequential:
    """The same layers, copied, in an ordinary `nn.Sequential`."""
    plain = nn.Sequential(copy.deepcopy(OrderedDict(model.named_children())))
    plain.training = model.training
    return plain


def assert_same_training(fused: nn.Sequential, plain: nn.Sequential, input: torch.Tensor) -> None:
    """Two steps of SGD give the same outputs, gradients, parameters and running statistics; then the same evaluation."""
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (fused, plain) if list(m.parameters())]
    modes = [m.training for m in fused.modules()]
    for _ in range(2):
        results = []
        for model in (fused, plain):
            x = input.clone().requires_grad_()
            out = model(x)
            (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
            results.append([out.detach(), x.grad, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(results[0], results[1])
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert modes == [m.training for m in fused.modules()]
    assert_same_state(fused, plain)
    torch.testing.assert_close(fused.eval()(input), plain.eval()(input))


def assert_same_state(fused: nn.Module, plain: nn.Module) -> None:
    assert list(fused.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(dict(fused.state_dict()), dict(plain.state_dict()))
