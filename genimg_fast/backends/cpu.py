# SPDX-License-Identifier: MIT
"""Settings of the CPU kernels.  Process-wide, like the flags of `torch.backends`.

`allow_winograd` (default True): whether convolutions may use Toom-Cook (Winograd) products where these are faster.  They
multiply less, err up to six times as much as plain sums do, and turn an infinite input into NaNs in the outputs around
it.  Convolutions of float64 do not use them.

The environment variable GENIMG_FAST_CPU_ISA ("portable", "avx2" or "avx512") holds the kernels to a narrower instruction set than
the CPU's.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genimg_fast import _extension

# The numbers are those of Variant in csrc/cpu/convolution_variant.h.
VARIANTS = {"direct": 1, "toom_cook_2": 2, "toom_cook_4": 3, "narrow": 4, "unpacked": 5}

allow_winograd: bool


@contextmanager
def force_variant(name: str) -> Iterator[None]:
    """Computes all convolutions, and their gradients, by one variant, for tests and benchmarks.

    What the variant cannot compute is computed by "direct".

    Raises:
        ValueError: if `name` is not one of `VARIANTS`.
        RuntimeError: if the native library is not loaded.
    """
    if name not in VARIANTS:
        raise ValueError(f"variant is {name!r}; allowed are {', '.join(map(repr, VARIANTS))}")
    if not _extension.status("cpu").loaded:
        raise RuntimeError(f"force_variant: {_extension.status('cpu').detail}")
    before = torch.ops.genimg_fast.cpu_variant()
    torch.ops.genimg_fast.set_cpu_variant(VARIANTS[name])
    try:
        yield
    finally:
        torch.ops.genimg_fast.set_cpu_variant(before)


class _Settings(types.ModuleType):
    """Lets a plain assignment to the module's attribute reach the kernels."""

    @property
    def allow_winograd(self) -> bool:
        return not _extension.status("cpu").loaded or torch.ops.genimg_fast.cpu_allow_winograd()

    @allow_winograd.setter
    def allow_winograd(self, allowed: bool) -> None:
        if not isinstance(allowed, bool):
            raise TypeError(f"allow_winograd must be True or False, got {allowed!r}")
        if _extension.status("cpu").loaded:
            torch.ops.genimg_fast.set_cpu_allow_winograd(allowed)


sys.modules[__name__].__class__ = _Settings
