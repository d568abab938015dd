# SPDX-License-Identifier: MIT
"""A small parity check of each op: native kernels, forward and backward, against the PyTorch reference.

Used by `genimg-fast doctor`, by the closing table of `genimg-fast demo`, and on first use on a GPU (_first_use.py).  The
thorough checks are the tests; this one takes milliseconds and asks whether *this* machine computes what it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from genimg_fast import functional
from genimg_fast._backend import Decision, record_decisions, use_backend_in_this_thread

ERROR_FACTOR = 6.0  # how much larger than PyTorch's own an error may be: what Winograd convolutions need
ROUNDINGS = 16  # an error of so many roundings of the largest value is always good enough
_EPS_OF_TF32 = 2.0**-10


class Parity(NamedTuple):
    difference: float
    """The largest difference from the float64 reference, over outputs and gradients, relative to their largest values."""
    ok: bool


class Inputs:
    """Draws the same numbers whatever the device and dtype, rounded to `rounded_to`, and remembers them."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype, rounded_to: torch.dtype | None = None) -> None:
        self.device, self.dtype, self._rounded_to = device, dtype, rounded_to or dtype
        self.drawn: list[torch.Tensor] = []
        self.leaves: list[torch.Tensor] = []  # what gradients are wanted for
        self._generator = torch.Generator().manual_seed(0)

    def randn(self, *shape: int) -> torch.Tensor:
        """Standard normal, with gradient."""
        leaf = self._placed(torch.randn(shape, generator=self._generator, device="cpu")).requires_grad_()
        self.drawn.append(leaf)
        self.leaves.append(leaf)
        return leaf

    def rand(self, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1], without gradient."""
        constant = self._placed(torch.rand(shape, generator=self._generator, device="cpu"))
        self.drawn.append(constant)
        return constant

    def _placed(self, drawn: torch.Tensor) -> torch.Tensor:
        # drawn in float32 whatever the dtype, so that all dtypes start from the same numbers
        return drawn.to(self._rounded_to).to(self.device, self.dtype)


Outputs = torch.Tensor | tuple[torch.Tensor, ...]


def _batch_norm(t: Inputs, channels: int) -> dict[str, torch.Tensor]:
    statistics = {"running_mean": t.rand(channels), "running_var": t.rand(channels) + 0.5}
    return {**statistics, "bn_weight": t.randn(channels), "bn_bias": t.randn(channels)}


def _convolution(
    function: Callable[..., torch.Tensor], t: Inputs, weight_shape: tuple[int, ...]
) -> tuple[torch.Tensor, ...]:
    """Normalised by running statistics, by batch statistics, and not at all.  Pixels of 16 bytes have kernels of their own."""
    x, weight, evaluated, trained = t.randn(4, 8, 9, 9), t.randn(*weight_shape), _batch_norm(t, 16), _batch_norm(t, 16)
    geometry = {"stride": 2, "padding": 1}
    return (
        function(x, weight, **evaluated, **geometry, activation="relu"),
        function(x, weight, **trained, **geometry, training=True, activation="leaky_relu", negative_slope=0.2),
        function(x, weight, t.randn(16), **geometry, activation="tanh"),
        trained["running_mean"],
        trained["running_var"],
    )


def _conv_transpose2d_bn_act(t: Inputs) -> Outputs:
    """And the layer that makes an image, which has kernels of its own."""
    blocks = _convolution(functional.conv_transpose2d_bn_act, t, (8, 16, 4, 4))
    x, weight = t.randn(4, 8, 9, 9), t.randn(8, 3, 4, 4)
    return *blocks, functional.conv_transpose2d_bn_act(x, weight, stride=2, padding=1, activation="tanh")


def _conv2d_bn_act(t: Inputs) -> Outputs:
    return _convolution(functional.conv2d_bn_act, t, (16, 8, 4, 4))


def _batch_norm_act(t: Inputs) -> Outputs:
    x, mean, var = t.randn(32, 64, 8, 8), t.rand(64), t.rand(64) + 0.5
    evaluated = functional.batch_norm_act(x, mean, var, t.randn(64), t.randn(64), activation="relu")
    mean, var = mean.clone(), var.clone()  # updated in place, while the first call's backward still needs the originals
    trained = functional.batch_norm_act(x, mean, var, t.randn(64), t.randn(64), training=True, activation="sigmoid")
    return evaluated, trained, mean, var


def _reparameterize(t: Inputs) -> Outputs:
    return functional.reparameterize(t.randn(9, 33), t.randn(9, 33), generator=torch.Generator(t.device).manual_seed(0))


def _reparameterize_with_kl(t: Inputs) -> Outputs:
    generator = torch.Generator(t.device).manual_seed(0)
    return functional.reparameterize_with_kl(t.randn(9, 33), t.randn(9, 33), "batchmean", generator=generator)


def _bce_loss(t: Inputs) -> Outputs:
    return functional.bce_loss(t.randn(9, 33).sigmoid(), t.rand(9, 33))


def _bce_with_logits_loss(t: Inputs) -> Outputs:
    return functional.bce_with_logits_loss(t.randn(9, 33), t.rand(9, 33))


def _gaussian_kl_loss(t: Inputs) -> Outputs:
    return functional.gaussian_kl_loss(t.randn(9, 33), t.randn(9, 33), "batchmean")


def _elbo_loss(t: Inputs) -> Outputs:
    return functional.elbo_loss(t.randn(9, 3, 5, 5), t.rand(9, 3, 5, 5), t.randn(9, 33), t.randn(9, 33), beta=0.5)


CASES: dict[str, Callable[[Inputs], Outputs]] = {
    "conv_transpose2d_bn_act": _conv_transpose2d_bn_act,
    "conv2d_bn_act": _conv2d_bn_act,
    "batch_norm_act": _batch_norm_act,
    "reparameterize": _reparameterize,
    "reparameterize_with_kl": _reparameterize_with_kl,
    "bce_loss": _bce_loss,
    "bce_with_logits_loss": _bce_with_logits_loss,
    "gaussian_kl_loss": _gaussian_kl_loss,
    "elbo_loss": _elbo_loss,
}


def _outputs_and_gradients(
    op: str, device: torch.device | str, dtype: torch.dtype, rounded_to: torch.dtype
) -> list[torch.Tensor]:
    inputs = Inputs(device, dtype, rounded_to)
    outputs = CASES[op](inputs)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    # Squares, so that the upstream gradient differs from element to element.
    gradients = torch.autograd.grad(torch.stack([o.square().sum() for o in outputs]).sum(), inputs.leaves)
    return [t.detach().to("cpu", torch.float64) for t in (*outputs, *gradients)]


def decisions(op: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> list[Decision]:
    """Which backend serves `op` on `device` under the present setting, if it is worth it; one entry a distinct reason."""
    inputs = Inputs(device, dtype)
    with record_decisions(heed_speed=False) as taken:
        CASES[op](inputs)
    own = [d for d in taken if d.op == op]  # and not those of the batch_norm_act that it may end in
    return list(dict.fromkeys(own or taken))


def check(op: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Parity:
    """Runs the small case of `op` in `dtype` through the native kernels of `device` and compares with float64.

    Raises:
        KeyError: there is no such op.
        RuntimeError: `device` has no native kernels, or none for this case.
    """
    with use_backend_in_this_thread("native"):
        native = _outputs_and_gradients(op, device, dtype, dtype)
    with use_backend_in_this_thread("reference"):
        reference = _outputs_and_gradients(op, device, dtype, dtype)
        exact = _outputs_and_gradients(op, device, torch.float64, dtype)

    worst, ok = 0.0, True
    for got, torch_result, want in zip(native, reference, exact, strict=True):
        largest = max(want.abs().max().item(), 1e-30)
        difference = (got - want).abs().max().item() / largest
        allowed = max(
            ERROR_FACTOR * (torch_result - want).abs().max().item() / largest, ROUNDINGS * _eps(op, device, dtype)
        )
        ok = ok and difference <= allowed  # False for NaN too
        worst = difference if not difference <= worst else worst
    return Parity(worst, ok)


def _eps(op: str, device: torch.device | str, dtype: torch.dtype) -> float:
    if op.startswith("conv") and dtype == torch.float32 and torch.device(device).type == "cuda":
        return _EPS_OF_TF32  # PyTorch may choose a kernel without TF32 for the same case
    return torch.finfo(dtype).eps
