# SPDX-License-Identifier: MIT
"""What is timed on a GPU, in a module that worker processes can import, and the limits that times are held against."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from genimg_fast import use_backend
from genimg_fast.backends import cuda
from genimg_fast.benchmark.convolution import Convolution
from genimg_fast.benchmark.runtimes import Ours, Runtime
from genimg_fast.benchmark.worker import seconds_per_call
from genimg_fast.benchmark.workloads import Prepared, Workload

TOLERANCES = {torch.float32: (1e-4, 0.05), torch.bfloat16: (0.03, 0.3)}
"""Of outputs and of gradients.  In bfloat16 a rounding that moves a value across a ReLU's corner changes gradients in steps: eager's own
errors reach 0.12 in a whole generator."""


@dataclass(frozen=True)
class InDtype:
    """A workload in another dtype than float32; float64, which it is compared with, stays."""

    workload: Any
    dtype: torch.dtype

    @property
    def images(self) -> int | None:
        return self.workload.images

    @property
    def bytes(self) -> float:
        return self.workload.bytes * self.dtype.itemsize / 4

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        dtype = self.dtype if dtype == torch.float32 else dtype
        prepared = self.workload.prepare(runtime, dtype, noise)
        of_outputs, of_gradients = TOLERANCES[self.dtype]
        allowed = {n: of_gradients if n.startswith("gradient") else of_outputs for n in prepared.tolerances}
        return dataclasses.replace(prepared, tolerances=allowed)


@dataclass(frozen=True)
class KernelAlone:
    """A convolution without what Python adds: captured and replayed, ours on its native kernel."""

    convolution: Convolution
    dtype: torch.dtype
    tile: str | None = None
    """Of ours, a key of `genimg_fast.backends.cuda.TILES`; None: the one that it chooses."""

    @property
    def images(self) -> int:
        return self.convolution.images

    def floor(self, limits: Limits) -> float:
        """Seconds that its multiplications or its bytes must take."""
        bytes = self.convolution.bytes * self.dtype.itemsize / 4
        return max(self.convolution.flops / limits.flops_per_second, bytes / limits.bytes_per_second)

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        is_exact = dtype == torch.float64
        tile = cuda.force_tile(self.tile) if self.tile else nullcontext()
        with use_backend("native" if isinstance(runtime, Ours) and not is_exact else "auto"), tile:
            prepared = self.convolution.prepare(runtime, dtype) if is_exact else self._captured(runtime)
        return dataclasses.replace(prepared, tolerances=dict.fromkeys(prepared.tolerances, TOLERANCES[self.dtype][0]))

    def _captured(self, runtime: Runtime) -> Prepared:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # the forward pass too: backward runs on its stream
            prepared = self.convolution.prepare(runtime, self.dtype)
            for _ in range(3):
                prepared.call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            outputs = prepared.call()

        def replay(
            _reads: Prepared = prepared,
        ) -> Sequence[torch.Tensor]:  # what the graph reads must live as long as it
            graph.replay()
            return outputs

        return dataclasses.replace(prepared, call=replay)


# --- measurements that take no turns ---------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What the card reached in this run."""

    flops_per_second: float
    """Multiplying matrices of 8192x8192 random bfloat16."""
    bytes_per_second: float
    """Copying 2 GiB, reading and writing each counted."""


@dataclass(frozen=True)
class MeasureLimits:
    matrix: int = 8192
    copied: int = 1 << 31

    def __call__(self, runtime: Runtime) -> Limits:
        a, b = (torch.randn(self.matrix, self.matrix, device=runtime.device, dtype=torch.bfloat16) for _ in range(2))
        product = _median_seconds(lambda: torch.mm(a, b), runtime)
        source = torch.empty(self.copied, dtype=torch.uint8, device=runtime.device).random_()
        target = torch.empty_like(source)
        copy = _median_seconds(lambda: target.copy_(source), runtime)
        return Limits(2 * self.matrix**3 / product, 2 * self.copied / copy)


def _median_seconds(function: Callable[[], object], runtime: Runtime) -> float:
    seconds_per_call(function, 3, runtime.device)
    return statistics.median(seconds_per_call(function, 3, runtime.device) for _ in range(7))


@dataclass(frozen=True)
class Launches:
    """The kernels that one call of a workload launches, by name; those that a graph launches count too."""

    workload: Workload

    def __call__(self, runtime: Runtime) -> list[str]:
        prepared = self.workload.prepare(runtime)
        for _ in range(3):
            prepared.call()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            prepared.call()
            torch.cuda.synchronize()
        events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return [e.name[:120] for e in events if not e.name.startswith(("Memcpy", "Memset"))]
