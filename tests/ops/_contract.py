# SPDX-License-Identifier: MIT
"""What every op promises PyTorch, checked by one function over all ops."""

from __future__ import annotations

from collections.abc import Callable

import torch


def check(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """`function` of float32 `inputs` is differentiable twice, compiles, vmaps and works under torch.func.

    It must have one tensor output and be deterministic.  Inputs are the differentiable tensors alone: bind the others.
    """
    doubles = [t.double().requires_grad_() for t in inputs]
    # fast_mode compares random projections of the Jacobians, as torch's own tests do: seconds instead of minutes
    assert torch.autograd.gradcheck(function, doubles, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, doubles, fast_mode=True)
    _check_compile(function, inputs)
    _check_vmap(function, inputs)
    _check_func_grad(function, inputs)


def _value_and_grads(function, inputs):
    inputs = [t.clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


def _check_compile(function, inputs):
    torch._dynamo.reset()
    # aot_eager: all of the tracing that torch.compile does, without minutes of C++ compilation
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_value_and_grads(compiled, inputs), _value_and_grads(function, inputs))


def _check_vmap(function, inputs):
    batch = [torch.stack([t, 2 * t, -t]) for t in inputs]
    expected = torch.stack([function(*(b[i] for b in batch)) for i in range(3)])
    torch.testing.assert_close(torch.vmap(function)(*batch), expected)


def _check_func_grad(function, inputs):
    def scalar(*tensors):
        return function(*tensors).square().sum()

    expected = _value_and_grads(function, inputs)[1:]
    torch.testing.assert_close(list(torch.func.grad(scalar, argnums=tuple(range(len(inputs))))(*inputs)), expected)


def check_threads(function: Callable[[], torch.Tensor]) -> None:
    """`function` gives the same bits on 1, 2 and 3 threads."""
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(function())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
