# SPDX-License-Identifier: MIT
"""What is timed.  A workload is a small picklable description; `prepare` builds it for one runtime.

The same weights and inputs are drawn for every runtime and dtype, so that outputs can be compared with float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from genimg_fast.benchmark.runtimes import Runtime

TOLERANCE = 1e-4
"""The largest error that a timed result may have: ||actual - exact|| / ||exact||."""
TOLERANCE_OF_TF32 = 2e-2
"""The same on CUDA, where PyTorch's convolutions run in TF32."""


@dataclass(frozen=True)
class Prepared:
    call: Callable[[], Sequence[Any]]
    """Runs the workload once; returns its outputs and gradients."""
    tolerances: dict[str, float]
    """What each of them is, in order, and the error that it may have."""
    noise: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None
    """The standard normal noise that the runtime drew, from the outputs in float64; None where none is drawn."""


class Workload(Protocol):
    @property
    def images(self) -> int | None:
        """How many a call makes or takes, where that is what a user counts."""

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        """`noise`: to use in place of the runtime's own."""


class Inputs:
    """Draws the same numbers whatever the runtime and the dtype, on the runtime's device."""

    def __init__(self, runtime: Runtime, dtype: torch.dtype) -> None:
        self._runtime, self._dtype = runtime, dtype
        self._generator = torch.Generator(runtime.device).manual_seed(0)

    def _placed(self, t: torch.Tensor) -> torch.Tensor:
        return self._runtime.layout(t.to(self._dtype))

    def randn(self, *shape: int) -> torch.Tensor:
        return self._placed(torch.randn(shape, generator=self._generator, device=self._runtime.device))

    def rand(self, *shape: int) -> torch.Tensor:
        return self._placed(torch.rand(shape, generator=self._generator, device=self._runtime.device))


def tolerances(*labels: str) -> dict[str, float]:
    """Each held to `TOLERANCE`."""
    return dict.fromkeys(labels, TOLERANCE)
