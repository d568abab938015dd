# SPDX-License-Identifier: MIT
"""The public functions: drop-in for compositions of `torch.nn.functional`, each equal to the expression it names."""

from __future__ import annotations

import torch

from genimg_fast import ops

__all__ = ["batch_norm_act", "conv2d_bn_act", "conv_transpose2d_bn_act", "reparameterize"]


def batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Batch normalisation (Ioffe and Szegedy 2015) and activation in the fewest passes over memory.

    Equal to ``activation(F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps))``. Only
    ``input`` is kept for backward, which recomputes the normalised value and the activation's mask.

    Args:
        input: (N, C), (N, C, L), (N, C, H, W) or any (N, C, ...).
        running_mean, running_var: (C,). With ``training`` they may be None, else they are updated in place.
        weight, bias: (C,), the affine part. These and the running statistics have input's dtype, or are float32 with
            a half-precision input.
        training: normalise with the statistics of this batch.
        momentum: weight of the new value in the running statistics.
        eps: added to the variance.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Returns:
        The shape, dtype and memory format of input. Under autocast, too, the dtype is input's.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line; ValueError if
            ``training`` meets a single value per channel.
    """
    return ops.batch_norm_act(
        input, running_mean, running_var, weight, bias, training=training, momentum=momentum, eps=eps,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def conv2d_bn_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Convolution, batch normalisation and activation in one call.

    Equal to ``activation(F.batch_norm(F.conv2d(input, weight, bias, ...), running_mean, running_var, bn_weight, bn_bias,
    training, momentum, eps))``, without the batch normalisation when not training and no running statistics are given.

    Args:
        input: (N, Cin, H, W), or (Cin, H, W) without batch normalisation.
        weight: (Cout, Cin / groups, kH, kW), of input's dtype.
        bias: (Cout,), the convolution's.
        running_mean, running_var: (Cout,). With ``training`` they are updated in place, as ``F.batch_norm`` does.
        bn_weight, bn_bias: (Cout,), the affine part of the batch normalisation.
        training: normalise with the statistics of this batch.
        momentum: weight of the new value in the running statistics.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Returns:
        (N, Cout, H', W') with H' = (H + 2 * padding - dilation * (kH - 1) - 1) // stride + 1, in input's memory format.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
    """
    return ops.conv2d_bn_act(
        input, weight, bias, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
        stride=stride, padding=padding, groups=groups, dilation=dilation, activation=activation,
        negative_slope=negative_slope,
    )  # fmt: skip


def conv_transpose2d_bn_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Transposed convolution, batch normalisation and activation in one call: a block of a convolutional generator.

    Equal to ``activation(F.batch_norm(F.conv_transpose2d(input, weight, bias, ...), running_mean, running_var, bn_weight,
    bn_bias, training, momentum, eps))``, without the batch normalisation when not training and no running statistics are
    given. The block is that of DCGAN (Radford, Metz and Chintala 2016).

    Args:
        input: (N, Cin, H, W), or (Cin, H, W) without batch normalisation.
        weight: (Cin, Cout / groups, kH, kW), of input's dtype.
        bias: (Cout,), the convolution's.
        running_mean, running_var: (Cout,). With ``training`` they are updated in place, as ``F.batch_norm`` does.
        bn_weight, bn_bias: (Cout,), the affine part of the batch normalisation.
        training: normalise with the statistics of this batch.
        momentum: weight of the new value in the running statistics.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".

    Returns:
        (N, Cout, H', W') with H' = (H - 1) * stride - 2 * padding + dilation * (kH - 1) + output_padding + 1, in input's
        memory format.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, named in one line.
    """
    return ops.conv_transpose2d_bn_act(
        input, weight, bias, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
        stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def reparameterize(
    mu: torch.Tensor, logvar: torch.Tensor, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """A sample of N(mu, exp(logvar)) through which gradient flows (Kingma and Welling 2014).

    Equal to ``mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)``, with other noise of the same distribution: Philox4x32-10
    and Box-Muller, float32 whatever the dtype, drawn in the kernel and drawn again in backward, so that it is never stored.

    One call draws one 64-bit seed from torch's generator of mu's device; ``torch.manual_seed`` therefore reproduces it. The
    same seed gives the same noise on every device, layout, dtype, backend and number of threads (floats to a few ulp). Under
    ``torch.vmap`` the seed obeys ``randomness``: "different" draws one an example, "same" one for all, "error" raises.

    Args:
        mu, logvar: of any shape, both the same, in the same dtype. Under autocast they are taken in float32.
        generator: draws the seed; default torch's own of mu's device.

    Returns:
        z, of mu's shape, dtype and memory format.

    Raises:
        TypeError, ValueError: arguments of different dtypes, shapes or devices, named in one line.
    """
    return ops.reparameterize(mu, logvar, generator=generator)
