# SPDX-License-Identifier: MIT
"""The first time that "auto" would run an op's CUDA kernels on a GPU, they compute one small case beside the reference.

A library built for another architecture, a driver or a compiler with a fault: whoever trains on it should get a warning and
right numbers.  Nothing is checked where it could disturb: while a CUDA graph is captured, inside torch.compile or a
transform of torch.func; a later call is then the first.
"""

from __future__ import annotations

import warnings

import torch

from genimg_fast.backends import cuda

_CHECKED_DEVICE_TYPES = ("cuda",)

# Ops without kernels of their own.
_KERNELS_OF = {"sync_batch_norm_act": "batch_norm_act"}

# What was found against (op, device, dtype, allow_wgmma); None: nothing.
_findings: dict[tuple[str, torch.device, torch.dtype, bool], str | None] = {}


def why_distrusted(op: str, like: torch.Tensor) -> str | None:
    """Why the kernels of `op` must not serve the device and dtype of `like`, or None."""
    if torch.compiler.is_compiling() or like.device.type not in _CHECKED_DEVICE_TYPES:
        return None
    key = (_KERNELS_OF.get(op, op), like.device, like.dtype, cuda.allow_wgmma)
    if key not in _findings:
        if not _may_check():
            return None
        _findings[key] = None  # while it is checked
        _findings[key] = _check(*key[:3])
    return _findings[key]


def _may_check() -> bool:
    if torch._C._functorch.get_interpreter_stack() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _check(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
    from genimg_fast import _parity  # which needs the ops, which need this module

    # The hooks of activation checkpointing count what is saved: what the check saves is not theirs.
    own_tensors = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False), own_tensors:
            parity = _parity.check(op, device, dtype)
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:  # such as "no kernel image is available for execution on the device"
        if "out of memory" in str(error) or "for want of memory" in str(error):  # as native code tells it
            return None
        found = f"do not run: {' '.join(str(error).split())[:200]}"
    else:
        if parity.ok:
            return None
        found = f"differ from the reference by {parity.difference:.1e}"
    finding = f"the kernels of {op} for {str(dtype).removeprefix('torch.')} on {device} {found}"
    warnings.warn(f"genimg_fast: {finding}; PyTorch serves it in this process", RuntimeWarning, stacklevel=2)
    return finding
