# SPDX-License-Identifier: MIT
"""The blocks that convolutional generators, encoders and discriminators are stacked from."""

from __future__ import annotations

from torch import nn

from genimg_fast.nn.sequential import FusedSequential
from genimg_fast.ops import _check


class ConvTranspose2dBNAct(FusedSequential):
    """Transposed convolution, batch normalisation and activation, run as one call: a block of a generator.

    Equal to ``nn.Sequential(nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding, output_padding,
    groups, bias, dilation), nn.BatchNorm2d(out_channels, eps, momentum), nn.ReLU())``, whose ``state_dict`` keys and initial
    values it has: ``0.weight``, ``1.weight`` and so on.  Source: DCGAN (Radford, Metz and Chintala 2016).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, dilation: the convolution's.
        bias: of the convolution; by default there is one only without batch normalisation, which would cancel it.
        batch_norm: whether there is a batch normalisation.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".
        eps, momentum: the batch normalisation's.
        device, dtype: of the parameters.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W') with
        H' = (H - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1.

    Raises:
        ValueError: for an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        output_padding: int | tuple[int, int] = 0,
        *,
        groups: int = 1,
        dilation: int | tuple[int, int] = 1,
        bias: bool | None = None,
        batch_norm: bool = True,
        activation: str = "relu",
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device=None,
        dtype=None,
    ):
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                output_padding,
                groups,
                not batch_norm if bias is None else bias,
                dilation,
                device=device,
                dtype=dtype,
            )
        ]
        if batch_norm:
            layers.append(nn.BatchNorm2d(out_channels, eps, momentum, device=device, dtype=dtype))
        super().__init__(*layers, *_activation(type(self).__name__, activation, negative_slope))


class Conv2dBNAct(FusedSequential):
    """Convolution, batch normalisation and activation, run as one call: a block of an encoder or a discriminator.

    Equal to ``nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
    nn.BatchNorm2d(out_channels, eps, momentum), nn.ReLU())``, whose ``state_dict`` keys and initial values it has.  Source:
    the discriminator of DCGAN (Radford, Metz and Chintala 2016).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, groups, dilation: the convolution's.
        bias: of the convolution; by default there is one only without batch normalisation, which would cancel it.
        batch_norm: whether there is a batch normalisation.
        activation: "none", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: of "leaky_relu".
        eps, momentum: the batch normalisation's.
        device, dtype: of the parameters.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W') with
        H' = (H + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1.

    Raises:
        ValueError: for an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        *,
        groups: int = 1,
        dilation: int | tuple[int, int] = 1,
        bias: bool | None = None,
        batch_norm: bool = True,
        activation: str = "relu",
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        device=None,
        dtype=None,
    ):
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel_size,
                stride,
                padding,
                dilation,
                groups,
                not batch_norm if bias is None else bias,
                device=device,
                dtype=dtype,
            )
        ]
        if batch_norm:
            layers.append(nn.BatchNorm2d(out_channels, eps, momentum, device=device, dtype=dtype))
        super().__init__(*layers, *_activation(type(self).__name__, activation, negative_slope))


def _activation(block: str, name: str, negative_slope: float) -> list[nn.Module]:
    """The module of an activation: none of them for "none"."""
    _check.choice(block, "activation", name, tuple(_check.ACTIVATIONS))
    modules: dict[str, list[nn.Module]] = {
        "none": [],
        "relu": [nn.ReLU()],
        "leaky_relu": [nn.LeakyReLU(negative_slope)],
        "tanh": [nn.Tanh()],
        "sigmoid": [nn.Sigmoid()],
    }
    return modules[name]
