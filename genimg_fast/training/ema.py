# SPDX-License-Identifier: MIT
"""An exponential moving average of a module's weights: what a GAN or VAE is best sampled from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class EMA:
    """Follows a module: after each step, average = d * average + (1 - d) * weights.

    d is `decay`, but at most (1 + n) / (10 + n) at the n-th update, so that a short run is not averaged with its random
    beginning.  Buffers with fractions (batch norm's running statistics) are averaged as the weights are, since they
    describe the activations that those weights produce; counters are copied.

    Args:
        average: the module that holds the average: a copy of the one to follow.  Put in eval mode, without gradients.
        decay: in (0, 1).
    """

    def __init__(self, average: nn.Module, decay: float) -> None:
        self.average = average.eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes the weights of `module` in; it must have the keys of the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        source = module.state_dict()
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():
                averages.append(mean)
                values.append(source[name])
            else:
                mean.copy_(source[name])
        torch._foreach_lerp_(averages, values, 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.updates = state["updates"]
