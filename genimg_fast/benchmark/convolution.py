# SPDX-License-Identifier: MIT
"""The workload that runs the convolution of one layer in one direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from genimg_fast.benchmark.runtimes import Runtime
from genimg_fast.benchmark.workloads import Inputs, Prepared, tolerances

DIRECTIONS = ("forward", "data gradient", "weight gradient")


@dataclass(frozen=True)
class Convolution:
    """A convolution of a block alone, in the memory order that blocks keep between each other."""

    direction: str
    transposed: bool
    images: int
    cin: int
    cout: int
    size: int
    """Height and width of the input."""
    kernel: int = 4
    stride: int = 2
    padding: int = 1
    output_padding: int = 0

    def __str__(self) -> str:
        kind = "conv_transpose2d" if self.transposed else "conv2d"
        geometry = f"k{self.kernel}s{self.stride}p{self.padding}" + (
            f"op{self.output_padding}" * bool(self.output_padding)
        )
        return f"{kind} {self.cin}-{self.cout} {geometry} @{self.size}, {self.direction}"

    @property
    def output_size(self) -> int:
        if self.transposed:
            return (self.size - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def flops(self) -> int:
        """Of plain sums; Toom-Cook products need fewer."""
        pixels = self.size if self.transposed else self.output_size
        return 2 * self.images * pixels**2 * self.cin * self.cout * self.kernel**2

    @property
    def bytes(self) -> int:
        values = self.cin * self.size**2 + self.cout * self.output_size**2
        return 4 * (self.images * values + self.cin * self.cout * self.kernel**2)

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        draw = Inputs(runtime, dtype)
        x = draw.randn(self.images, self.cin, self.size, self.size).relu_()
        channels = (self.cin, self.cout) if self.transposed else (self.cout, self.cin)
        weight = draw.randn(*channels, self.kernel, self.kernel) * 0.02
        upstream = draw.randn(self.images, self.cout, self.output_size, self.output_size)
        x, upstream = (t.contiguous(memory_format=torch.channels_last) for t in (x, upstream))
        geometry = {"stride": self.stride, "padding": self.padding}
        if self.transposed:
            function, geometry["output_padding"] = runtime.functional.conv_transpose2d_bn_act, self.output_padding
        else:
            function = runtime.functional.conv2d_bn_act

        if self.direction == "forward":

            def forward() -> Sequence[Any]:
                with torch.no_grad():
                    return (function(x, weight, **geometry),)

            return Prepared(forward, tolerances("output"))
        leaf = (x if self.direction == "data gradient" else weight).requires_grad_()
        output = function(x, weight, **geometry)
        return Prepared(
            lambda: torch.autograd.grad(output, leaf, upstream, retain_graph=True), tolerances(self.direction)
        )
