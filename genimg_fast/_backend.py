# SPDX-License-Identifier: MIT
"""Which implementation serves a call, and the reason in words.

Two exist for every op: the native kernels, and the pure-PyTorch reference that runs everywhere.  An op asks
`use_native(...)`; the first reason found against the native kernels sends the call to the reference.  `explain` (see
explain.py) listens to these answers.  The setting is process-wide, like the flags of `torch.backends`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._device import DeviceContext

from genimg_fast import _extension, _first_use

BACKENDS = ("auto", "native", "reference")

_NATIVE_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}


class Decision(NamedTuple):
    op: str
    native: bool
    reason: str
    """Why not native; empty if native."""


class BackendError(RuntimeError):
    """Backend "native" was asked for, and cannot serve a call."""


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}; allowed are {', '.join(map(repr, BACKENDS))}")
    return name


class _OfThread(threading.local):
    backend: str | None = None


_backend = os.environ.get("GENIMG_FAST_BACKEND", "auto")
_of_thread = _OfThread()  # goes before it
_decisions: list[Decision] | None = None  # filled while explain() listens
_heeds_speed = True
_native_calls = 0


def current_backend() -> str:
    """The backend in force: "auto", "native" or "reference"."""
    # Checked here and not at import, so that a mistyped environment variable does not break `import genimg_fast`.
    return _of_thread.backend or _checked(_backend, "GENIMG_FAST_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs the block on "auto" (native where it can run and pays), "native" (raise where it cannot) or "reference".

    The environment variable GENIMG_FAST_BACKEND sets the default for a process.

    Raises:
        ValueError: for any other name.
    """
    global _backend
    before = _backend
    _backend = _checked(name, "backend")
    try:
        yield
    finally:
        _backend = before


@contextmanager
def use_backend_in_this_thread(name: str) -> Iterator[None]:
    """`use_backend` for a check that the first use of an op may start in any thread, whatever others compute meanwhile."""
    before, _of_thread.backend = _of_thread.backend, name
    try:
        yield
    finally:
        _of_thread.backend = before


@contextmanager
def record_decisions(*, heed_speed: bool = True) -> Iterator[list[Decision]]:
    """Collects the decisions taken in the block, in order.

    Args:
        heed_speed: False where a small example stands for larger ones: "auto" then takes the native kernels wherever they
            can run.
    """
    global _decisions, _heeds_speed
    before, _decisions, _heeds_speed = (_decisions, _heeds_speed), [], heed_speed
    try:
        yield _decisions
    finally:
        _decisions, _heeds_speed = before


def _inside_func_grad() -> bool:
    """Inside torch.func.grad, vjp, jvp or what is built on them.  vmap alone is fine: each op has a rule for it."""
    if torch.compiler.is_compiling():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() != torch._C._functorch.TransformType.Vmap for level in stack)


def _inside_forward_ad() -> bool:
    """Inside torch.autograd.forward_ad.dual_level: an operator without a forward-mode formula would lose the tangents."""
    return torch.autograd.forward_ad._current_level >= 0


def inside_func_transform() -> bool:
    """Inside torch.vmap, torch.func.grad or any other transform of torch.func, or inside forward-mode AD."""
    return not torch.compiler.is_compiling() and bool(
        torch._C._functorch.get_interpreter_stack() or _inside_forward_ad()
    )


def is_recording_for_export() -> bool:
    """Whether torch.export, ONNX export or torch.jit.trace records the operators that are called."""
    # torch.compiler.is_exporting() reads this flag, and is always true where torch.compile of 2.11 traces it
    return torch.compiler._is_exporting_flag or torch.jit.is_tracing()


def _inside_mode() -> bool:
    """Inside a mode that sees the operators or functions that are called, and may do anything in their place."""
    count = torch._C._len_torch_function_stack()
    # torch.device and torch.set_default_device change what makes tensors, and nothing else
    if count and any(type(torch._C._get_function_stack_at(i)) is not DeviceContext for i in range(count)):
        return True
    return torch._C._len_torch_dispatch_stack() != 0


def may_fuse(input: Any, *, inside_mode: bool = False) -> bool:
    """Whether a fused call may take the layers' place.

    Not where others record the operators that are called: an export, a mode, a subclass of Tensor, an fx Proxy.  Nor for
    complex numbers and integers, some of which PyTorch's layers serve.

    Args:
        inside_mode: whatever modes there are.
    """
    if type(input) not in (torch.Tensor, torch.nn.Parameter) or not input.is_floating_point():
        return False
    if torch.compiler.is_compiling():
        return not is_recording_for_export()
    # of is_recording_for_export() what can be so here: a small model's pass takes ten microseconds
    return not (torch.compiler._is_exporting_flag or torch._C._is_tracing() or (not inside_mode and _inside_mode()))


def has_own_functions(cls: type[torch.Tensor]) -> bool:
    """Whether tensors of this class see the functions of torch that are called on them.

    A DTensor sees operators alone, and fuses: FSDP2 puts an ordinary tensor in its place before a forward pass.
    """
    if cls in (torch.Tensor, torch.nn.Parameter):
        return False
    return cls.__torch_function__ is not torch._C._disabled_torch_function_impl


_BATCHED = [torch._C._dispatch_key_parse(key) for key in ("FuncTorchBatched", "Batched")]


def is_batched(t: torch.Tensor) -> bool:
    """Whether torch.vmap, or torch.autograd.grad with `is_grads_batched`, has stacked several tensors in this one."""
    keys = torch._C._dispatch_keys(t)
    return any(keys.has(key) for key in _BATCHED)


def stacks(*tensors: torch.Tensor | None) -> bool:
    """Whether torch.vmap, or torch.autograd.grad with `is_grads_batched`, is at work, of which PyTorch's own operators alone are
    recorded."""
    return inside_func_transform() or any(t is not None and is_batched(t) for t in tensors)


def why_not_native(*tensors: torch.Tensor | None, dtype: torch.dtype | None = None) -> str | None:
    """The first reason why no native kernel can take these tensors, or None if one can.

    Args:
        dtype: to which they will be converted first; None: they are taken as they are.
    """
    present = [t for t in tensors if t is not None]
    device_type = present[0].device.type
    reason = _extension.why_not_on(present[0].device)
    if reason:
        return reason
    strided, dtypes = torch.strided, _NATIVE_DTYPES[device_type]
    for t in present:
        if t.layout != strided:
            return f"a tensor has layout {t.layout}; the kernels take strided tensors"
        given = dtype or t.dtype
        if given not in dtypes:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
            return f"dtype {str(given).removeprefix('torch.')} on {device_type}; the kernels take {allowed}"
    if _inside_func_grad() or _inside_forward_ad():
        return "inside torch.func.grad or forward-mode AD, which torch.library operators do not support"
    if is_recording_for_export():
        return "what is exported has standard operators alone"
    return None


def use_native(
    op: str,
    *tensors: torch.Tensor | None,
    unless: str | None = None,
    slower: Callable[[], str | None] | None = None,
) -> bool:
    """Whether the native kernels of `op` serve these tensors.

    Args:
        op: the op's name.
        tensors: its tensor arguments; None for the ones not given.
        unless: what the op itself knows against its native kernels for this call.
        slower: returns why PyTorch is faster for this call.  Only "auto" asks, and only where the kernels could serve: the
            answer depends on sizes, which a program that is compiled or exported for any size must not.

    Raises:
        BackendError: under backend "native", if the kernels cannot serve the call.
    """
    backend = current_backend()
    if backend == "reference":
        reason = "the backend is set to 'reference'"
    else:
        reason = why_not_native(*tensors) or unless or ""
        if backend == "auto":
            reason = reason or (slower() if slower is not None and _heeds_speed else None) or ""
            reason = reason or _first_use.why_distrusted(op, next(t for t in tensors if t is not None)) or ""
        if reason and backend == "native":
            raise BackendError(f"{op}: backend 'native' was asked for but cannot serve this call: {reason}")
    _note(Decision(op, not reason, reason))
    return not reason


def is_recording() -> bool:
    return _decisions is not None


def record_native(op: str) -> None:
    """For callers that know without asking that the native kernels serve a call."""
    _note(Decision(op, True, ""))


def _note(decision: Decision) -> None:
    if decision.native:
        count_native_call()
    if _decisions is not None and _of_thread.backend is None:  # else it is a check's, which nobody asked about
        _decisions.append(decision)


def count_native_call() -> None:
    """For callers that repeat what the native kernels served, or do something else that is faster than PyTorch, and decide nothing."""
    global _native_calls
    if not torch.compiler.is_compiling():
        _native_calls += 1


def native_calls() -> int:
    """How many calls the native kernels have served in this process; 0 in torch.compile, which would compile anew for each number."""
    return 0 if torch.compiler.is_compiling() else _native_calls
