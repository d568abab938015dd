# SPDX-License-Identifier: MIT
"""How this CPU computes in half types, which autocast asks for and our CPU kernels do not have."""

from __future__ import annotations

import platform

import torch


def _supports(feature: str) -> bool:
    return getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)()


# Of others nothing was measured: there PyTorch is taken to be fast.
_IS_X86 = platform.machine() in ("x86_64", "AMD64")
_HAS_AMX = not _IS_X86 or _supports("amx_tile")
_MULTIPLIES = {torch.bfloat16: _HAS_AMX or _supports("avx512_bf16"), torch.float16: _HAS_AMX}


def multiplies_matrices() -> bool:
    """Whether PyTorch has instructions for products of matrices (AMX), with which our kernels in float32 cannot keep up."""
    return _HAS_AMX


def multiplies(dtype: torch.dtype) -> bool:
    """Whether PyTorch has instructions for a half type.  Where it emulates them, it is slower than in float32, up to 200 times."""
    return _MULTIPLIES.get(dtype, True)
