# SPDX-License-Identifier: MIT
"""Workloads that misbehave, in a module that worker processes can import."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import torch

from genimg_fast.benchmark.functions import GaussianKLLoss, Reparameterize


@dataclass(frozen=True)
class WrongOutput(GaussianKLLoss):
    """Off by a thousandth, but not in the float64 it is compared with."""

    def output(self, runtime, *inputs):
        output = super().output(runtime, *inputs)
        return output if output.dtype == torch.float64 else output * 1.001


@dataclass(frozen=True)
class WrongNoise(Reparameterize):
    """Draws noise of variance 4."""

    def prepare(self, runtime, dtype=torch.float32, noise=None):
        if noise is None:
            noise = 2 * torch.randn(self.shape, dtype=dtype)
        return super().prepare(runtime, dtype, noise)


@dataclass(frozen=True)
class Dies(GaussianKLLoss):
    """Kills its process."""

    def prepare(self, runtime, dtype=torch.float32, noise=None):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FailsIn(GaussianKLLoss):
    """Raises on one runtime, but not in the float64 that the others are compared with."""

    label: str = ""

    def prepare(self, runtime, dtype=torch.float32, noise=None):
        if runtime.label == self.label and dtype == torch.float32:
            raise RuntimeError("no such\nkernel")
        return super().prepare(runtime, dtype, noise)


def surroundings(runtime):
    """What a worker process runs in."""
    names = ("OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")
    return os.getpid(), torch.get_num_threads(), {name: os.environ.get(name) for name in names}
