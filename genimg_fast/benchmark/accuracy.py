# SPDX-License-Identifier: MIT
"""The error of every convolution against float64, as a multiple of that of PyTorch's own kernel on the same input."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from genimg_fast.backends import cpu
from genimg_fast.benchmark.convolution import DIRECTIONS, Convolution
from genimg_fast.benchmark.runtimes import Runtime

_IMAGES = 8

# Transposed, Cin, Cout, input size, kernel, stride, padding, output_padding.
SHAPES = [
    (True, 100, 512, 1, 4, 1, 0, 0),
    (True, 512, 256, 4, 4, 2, 1, 0),
    (True, 256, 128, 8, 4, 2, 1, 0),
    (True, 128, 64, 16, 4, 2, 1, 0),
    (True, 64, 3, 32, 4, 2, 1, 0),
    (True, 64, 1, 16, 4, 2, 1, 0),
    (True, 64, 48, 15, 4, 2, 1, 0),
    (True, 64, 32, 16, 2, 2, 0, 0),
    (True, 64, 32, 16, 3, 2, 1, 0),
    (True, 64, 32, 16, 3, 2, 1, 1),
    (True, 64, 32, 16, 5, 2, 2, 1),
    (False, 3, 64, 64, 4, 2, 1, 0),
    (False, 64, 128, 32, 4, 2, 1, 0),
    (False, 128, 256, 16, 4, 2, 1, 0),
    (False, 256, 512, 8, 4, 2, 1, 0),
    (False, 512, 1, 4, 4, 1, 0, 0),
    (False, 64, 48, 30, 4, 2, 1, 0),
    (False, 64, 64, 16, 3, 1, 1, 0),
]


def convolutions() -> list[Convolution]:
    return [
        Convolution(direction, transposed, _IMAGES, cin, cout, size, *geometry)
        for transposed, cin, cout, size, *geometry in SHAPES
        for direction in DIRECTIONS
    ]


@dataclasses.dataclass(frozen=True)
class Errors:
    """The errors of one convolution: {"name", "eager", "winograd", "plain"}, root mean squares relative to the exact values'.

    "winograd" and "plain" are ours with `allow_winograd` on and off.
    """

    convolution: Convolution

    def __call__(self, runtime: Runtime) -> dict[str, Any]:
        (exact,) = self.convolution.prepare(Runtime(), torch.float64).call()

        def error(of: Runtime) -> float:
            (actual,) = self.convolution.prepare(of).call()
            return ((actual.double() - exact).norm() / exact.norm()).item()

        errors: dict[str, Any] = {"name": str(self.convolution), "eager": error(Runtime())}
        before = cpu.allow_winograd
        try:
            for name, allowed in (("winograd", True), ("plain", False)):
                cpu.allow_winograd = allowed
                errors[name] = error(runtime)
        finally:
            cpu.allow_winograd = before
        return errors


def factor(errors: dict[str, Any], name: str) -> float:
    """The error as a multiple of eager's, which is taken for at least half a rounding: it can be smaller by luck."""
    return errors[name] / max(errors["eager"], 2.0**-24)
