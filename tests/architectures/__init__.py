# SPDX-License-Identifier: MIT
"""Image generators of the literature, small, and written in the ways that public repositories write them.

How they are written is what they are for: `tests/nn/test_architectures.py` fuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from tests.architectures import adversarial, autoencoders, residual, translation, vocoder


class Architecture(NamedTuple):
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    fused: dict[str, int]
    """How many rows of the report are fused as what."""
    reasons: dict[str, int]
    """How many rows are left as they are for which reason."""


_LONE_1X1 = "kernel (1, 1), for which PyTorch's is as good, and nothing follows that fuses"

_OF_STARGAN = {_LONE_1X1: 1, "no convolution or normalisation that fuses stands before it": 1}

ARCHITECTURES = {
    "DCGAN generator": Architecture(
        lambda: adversarial.DCGANGenerator(), (4, 6, 1, 1), {"conv_transpose2d_bn_act": 4}, {}
    ),
    "DCGAN discriminator": Architecture(
        lambda: adversarial.DCGANDiscriminator(), (4, 3, 16, 16), {"conv2d_bn_act": 3}, {}
    ),
    "resize-convolution generator": Architecture(
        lambda: adversarial.ResizeGenerator(),
        (4, 6),
        {"batch_norm_act": 1, "conv_transpose2d_bn_act": 2, "conv2d_bn_act": 1},
        {"Linear is not a layer that fuses": 1},
    ),
    "WGAN-GP generator": Architecture(
        lambda: adversarial.WGANGenerator(),
        (4, 6),
        {"conv_transpose2d_bn_act": 2, "batch_norm_act": 1},
        {"Linear is not a layer that fuses": 1},
    ),
    "WGAN-GP critic": Architecture(
        lambda: adversarial.WGANCritic(),
        (4, 3, 16, 16),
        {"conv2d_bn_act": 3, "batch_norm_act": 1},
        {},
    ),
    "pix2pix U-Net generator": Architecture(
        lambda: translation.UnetGenerator(),
        (2, 3, 32, 32),
        {"conv2d_bn_act": 5, "conv_transpose2d_bn_act": 5},
        {
            "no convolution or normalisation that fuses stands before it": 8,
        },
    ),
    "CycleGAN generator": Architecture(
        lambda: translation.ResnetGenerator(),
        (2, 3, 12, 16),
        {"conv2d_bn_act": 8, "conv_transpose2d_bn_act": 2, "batch_norm_act": 9},
        {"ReflectionPad2d is not a layer that fuses": 6},
    ),
    "PatchGAN": Architecture(lambda: translation.NLayerDiscriminator(), (2, 3, 32, 32), {"conv2d_bn_act": 4}, {}),
    "segmentation U-Net": Architecture(
        lambda: translation.UNet(),
        (2, 3, 17, 19),
        {"conv2d_bn_act": 10, "conv_transpose2d_bn_act": 2},
        {"MaxPool2d is not a layer that fuses": 2, _LONE_1X1: 1},
    ),
    "SNGAN generator": Architecture(
        lambda: residual.SNGANGenerator(), (4, 6), {"batch_norm_act": 5, "conv2d_bn_act": 5}, {_LONE_1X1: 1}
    ),
    "SNGAN discriminator": Architecture(
        lambda: residual.SNGANDiscriminator(),
        (4, 3, 16, 16),
        {},
        {"weight is parametrized": 4, "it has hooks: SpectralNorm": 2},
    ),
    "StarGAN v2 discriminator": Architecture(
        lambda: residual.StarGANDiscriminator(), (4, 3, 16, 16), {"conv2d_bn_act": 6, "reordered": 1}, _OF_STARGAN
    ),
    "StarGAN v2 encoder": Architecture(
        lambda: residual.StarGANDiscriminator(normalize=True),
        (4, 3, 16, 16),
        {"conv2d_bn_act": 6, "batch_norm_act": 4, "reordered": 1},
        _OF_STARGAN,
    ),
    "SRGAN generator": Architecture(
        lambda: residual.SRGANGenerator(), (2, 3, 8, 8), {"conv2d_bn_act": 8}, {"PReLU is not a layer that fuses": 1}
    ),
    "convolutional VAE": Architecture(
        lambda: autoencoders.ConvVAE(),
        (4, 3, 16, 16),
        {"conv2d_bn_act": 2, "batch_norm_act": 2, "conv_transpose2d_bn_act": 2},
        {},
    ),
    "VAE-GAN": Architecture(
        lambda: autoencoders.VAEGAN(),
        (4, 3, 16, 16),
        {"conv2d_bn_act": 9, "batch_norm_act": 5, "conv_transpose2d_bn_act": 2},
        {"Linear is not a layer that fuses": 1},
    ),
    "HiFi-GAN vocoder": Architecture(
        lambda: vocoder.HiFiGANGenerator(),
        (2, 8, 5),
        {},
        {"Conv1d is not a layer that fuses": 6, "ConvTranspose1d is not a layer that fuses": 2},
    ),
}
