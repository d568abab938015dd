# SPDX-License-Identifier: MIT
"""z = mu + exp(logvar / 2) * eps: chooses the backend and ties the native op to autograd."""

from __future__ import annotations

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check
from genimg_fast.ops._autocast import float32_under_autocast
from genimg_fast.ops._registration import register
from genimg_fast.reference import reparameterize as reference


@float32_under_autocast
def reparameterize(mu: torch.Tensor, logvar: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
    _check_arguments(mu, logvar)
    _check.generator("reparameterize", generator)
    return reparameterize_with_seed(mu, logvar, draw_seed(mu, generator))


def draw_seed(like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """A seed from torch's own generator: torch.manual_seed reproduces it, and nothing waits for the device.

    On CUDA it is made of the generator's seed and place, which the host knows, and no kernel runs for it.  Where that would be
    wrong it is drawn in device memory: a replayed CUDA graph draws a new one, and vmap's randomness setting applies.
    """
    if like.is_cuda and _host_may_draw():
        generator = generator or torch.cuda.default_generators[like.get_device()]
        if generator.device == like.device:
            offset = generator.get_offset()
            generator.set_offset(offset + _OFFSET_STEP)
            return torch.tensor(_mixed(generator.initial_seed(), offset), device="cpu")
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=like.device, generator=generator)


_OFFSET_STEP = 4  # by which CUDA's generators count


def _host_may_draw() -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.get_interpreter_stack()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.cuda.is_current_stream_capturing()
    )


def _mixed(seed: int, offset: int) -> int:
    """63 bits, different for each offset: number `offset` of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (seed + 0x9E3779B97F4A7C15 * (offset + 1)) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) >> 1


def reparameterize_with_seed(mu: torch.Tensor, logvar: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """`reparameterize` with the noise of `seed`, one int64 on mu's device or on the CPU."""
    if not _backend.use_native("reparameterize", mu, logvar):
        return reference.reparameterize(mu, logvar, seed)
    return torch.ops.genimg_fast.reparameterize(mu, logvar, seed)


def _check_arguments(mu, logvar):
    op = "reparameterize"
    _check.tensor(op, mu=mu, logvar=logvar)
    _check.same_dtype(op, mu=mu, logvar=logvar)
    _check.same_shape(op, mu=mu, logvar=logvar)


def _fake(mu, logvar, seed):
    return torch.empty_like(mu)


def _fake_backward(grad, logvar, seed):
    return torch.empty_like(logvar)


def _setup_context(ctx, inputs, output):
    _, logvar, seed = inputs
    ctx.save_for_backward(logvar, seed)


def _backward(ctx, grad):
    return *gradients_of_sample(grad, *ctx.saved_tensors), None


def gradients_of_sample(
    grad: torch.Tensor, logvar: torch.Tensor, seed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of mu and logvar, given that of z."""
    if torch.is_grad_enabled():  # the backward is itself recorded (create_graph=True): use formulas with derivatives
        return grad, reference.reparameterize_backward(grad, logvar, seed)
    return grad, torch.ops.genimg_fast.reparameterize_backward(grad, logvar, seed)


register("reparameterize", _fake, backward=_backward, setup_context=_setup_context)
register("reparameterize_backward", _fake_backward)
