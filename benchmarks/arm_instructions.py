# SPDX-License-Identifier: MIT
"""Counts the instructions that an ARM CPU executes for a layer, PyTorch's and ours: `python -m benchmarks.arm_instructions`.

For those who have none to measure on: the CPU is emulated (`tests/emulated_arm` says what that needs), one thread, and what waits for
memory is not seen.  PyTorch there has Arm's Compute Library.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import torch
from torch import nn

LAYERS = {
    "ConvTranspose2d(128, 64, 4, 2, 1), 4 images of 16x16": (nn.ConvTranspose2d, (128, 64, 4, 2, 1), (4, 128, 16, 16)),
    "ConvTranspose2d(64, 3, 4, 2, 1), 2 images of 32x32": (nn.ConvTranspose2d, (64, 3, 4, 2, 1), (2, 64, 32, 32)),
    "ConvTranspose2d(64, 64, 3, 2, 1, 1), 2 images of 16x16": (
        nn.ConvTranspose2d,
        (64, 64, 3, 2, 1, 1),
        (2, 64, 16, 16),
    ),
    "Conv2d(64, 128, 4, 2, 1), 4 images of 32x32": (nn.Conv2d, (64, 128, 4, 2, 1), (4, 64, 32, 32)),
    "Conv2d(64, 64, 3, 1, 1), 2 images of 32x32": (nn.Conv2d, (64, 64, 3, 1, 1), (2, 64, 32, 32)),
    "Conv2d(64, 128, 3, 2, 1), 2 images of 32x32": (nn.Conv2d, (64, 128, 3, 2, 1), (2, 64, 32, 32)),
    "Conv2d(32, 64, 5, 2, 2), 2 images of 32x32": (nn.Conv2d, (32, 64, 5, 2, 2), (2, 32, 32, 32)),
}


def count() -> None:
    """On the emulated CPU."""
    import genimg_fast

    def evaluate(model: nn.Module, x: torch.Tensor) -> None:
        with torch.no_grad():
            model.eval()(x)

    def train(model: nn.Module, x: torch.Tensor) -> None:
        model.train()(x.requires_grad_()).sum().backward()

    mark = ctypes.CDLL(None).syscall
    for name, (layer, arguments, shape) in LAYERS.items():
        torch.manual_seed(0)
        model = nn.Sequential(layer(*arguments), nn.BatchNorm2d(arguments[1]), nn.ReLU())
        for run in (evaluate, train):
            for fused in (False, True):
                (genimg_fast.fuse if fused else genimg_fast.unfuse)(model)
                with genimg_fast.use_backend("native" if fused else "auto"):
                    x = torch.randn(shape)
                    run(model, x), run(model, x)  # packs weights, and chooses
                    print(f"{name:<56} {run.__name__:<9} {'ours' if fused else 'PyTorch':<8}", end="", flush=True)
                    mark(9999, 0)
                    run(model, x)
                    mark(9999, 1)


def main() -> None:
    from tests.emulated_arm.__main__ import HOME, ROOT

    HOME.mkdir(parents=True, exist_ok=True)
    plugin = HOME / "count.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", ROOT / "tests/emulated_arm/count.c", "-o", plugin], check=True)
    print("millions of instructions, and of vector multiply-adds among them", flush=True)
    command = [sys.executable, "-m", "tests.emulated_arm", "-m", "benchmarks.arm_instructions", "--emulated"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "QEMU_PLUGIN": str(plugin)}, check=True)


if __name__ == "__main__":
    count() if "--emulated" in sys.argv else main()
