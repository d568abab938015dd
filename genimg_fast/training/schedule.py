# SPDX-License-Identifier: MIT
"""The learning rate as a function of the step, so that nothing about it has to be saved to resume."""

from __future__ import annotations

import math


def lr_factor(step: int, *, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """What the learning rate is multiplied by at `step` (counted from 0).

    Rises linearly over `warmup_steps`; then stays 1 ("constant"), or falls to 0 at `total_steps` along a straight line
    ("linear") or half a cosine ("cosine"; Loshchilov and Hutter 2017, without restarts).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
