# SPDX-License-Identifier: MIT
"""Each kernel's share of its own limit: FLOP/s over those of a large SGEMM, GB/s over those of a large copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from genimg_fast.benchmark.convolution import DIRECTIONS, Convolution
from genimg_fast.benchmark.functions import (
    BatchNormAct,
    BCELoss,
    BCEWithLogitsLoss,
    ELBOLoss,
    Function,
    GaussianKLLoss,
    Reparameterize,
    ReparameterizeWithKL,
)
from genimg_fast.benchmark.runtimes import Runtime
from genimg_fast.benchmark.worker import Worker

_IMAGES = 64
_LAYERS = {  # Cin, Cout, input size of DCGAN-64's layers, and the geometry where it is not k4s2p1
    True: [(100, 512, 1, 4, 1, 0), (512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 3, 32)],
    False: [(3, 64, 64), (64, 128, 32), (128, 256, 16), (256, 512, 8), (512, 1, 4, 4, 1, 0)],
}
_CONVOLUTIONS = [
    Convolution(direction, transposed, _IMAGES, *layer)
    for transposed, layers in _LAYERS.items()
    for direction in DIRECTIONS
    for layer in layers
]
KERNELS: dict[str, Convolution | Function] = {
    **{str(c): c for c in _CONVOLUTIONS},
    "elbo_loss 512x3x64x64": ELBOLoss((512, 3, 64, 64)),
    "bce_with_logits_loss 512x3x64x64": BCEWithLogitsLoss((512, 3, 64, 64)),
    "bce_loss 512x3x64x64": BCELoss((512, 3, 64, 64)),
    "gaussian_kl_loss 4096x128": GaussianKLLoss((4096, 128)),
    "reparameterize 4096x128": Reparameterize((4096, 128)),
    "reparameterize_with_kl 4096x128": ReparameterizeWithKL((4096, 128)),
    "batch_norm_act 64x64x32x32": BatchNormAct((64, 64, 32, 32)),
}


class Limits(NamedTuple):
    """What the machine reached in this run, best of many short trials."""

    flops_per_second: float
    """SGEMM of 1024x1024x1024."""
    bytes_per_second: float
    """Reading and writing, each counted, in a copy of 64 MiB."""


def measure_limits(runtime: Runtime) -> Limits:
    a, b, c = (torch.randn(1024, 1024) for _ in range(3))
    source, target = torch.randn(2**24), torch.empty(2**24)
    return Limits(
        2 * 1024**3 / _best_seconds(lambda: torch.mm(a, b, out=c)),
        2 * source.nbytes / _best_seconds(lambda: target.copy_(source)),
    )


def _best_seconds(function: Callable[[], object], seconds: float = 0.5) -> float:
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def measure(worker: Worker, name: str, workload: Convolution | Function, limits: Limits) -> dict[str, Any]:
    """The best block of a few, as the limits are the best of many trials.

    Raises:
        RuntimeFailedError: the kernel computes something else, or its process died.
    """
    worker.ask("prepare", workload)
    seconds = min(worker.ask("run", 0.05).seconds for _ in range(5))
    result: dict[str, Any] = {"name": name, "milliseconds": seconds * 1e3, "bytes": workload.bytes}
    if isinstance(workload, Convolution):
        rate = workload.flops / seconds
        return {**result, "flops": workload.flops, "share": rate / limits.flops_per_second, "limit": "SGEMM"}
    return {**result, "share": workload.bytes / seconds / limits.bytes_per_second, "limit": "copy"}
