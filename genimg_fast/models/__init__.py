# SPDX-License-Identifier: MIT
"""Image generators by name: ``create("dcgan", image_size=32)``."""

from __future__ import annotations

import inspect
from typing import Any

from genimg_fast.models.base import GAN, VAE, DiagonalGaussian, ImageModel
from genimg_fast.models.block_gan import BlockGAN
from genimg_fast.models.conv_vae import ConvVAE
from genimg_fast.models.dcgan import DCGAN
from genimg_fast.models.dense_gan import DenseGAN
from genimg_fast.models.vae import DenseVAE

__all__ = [
    "DCGAN",
    "GAN",
    "VAE",
    "BlockGAN",
    "ConvVAE",
    "DenseGAN",
    "DenseVAE",
    "DiagonalGaussian",
    "ImageModel",
    "create",
    "list_arguments",
    "list_models",
]

_MODELS: dict[str, type[ImageModel]] = {cls.name: cls for cls in (DenseVAE, ConvVAE, DCGAN, BlockGAN, DenseGAN)}


def list_models() -> list[str]:
    """The names that `create` knows."""
    return list(_MODELS)


def list_arguments(name: str) -> list[str]:
    """The arguments of `create` for the model of this name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _MODELS:
        raise ValueError(f"model must be one of {', '.join(map(repr, _MODELS))}, got {name!r}")
    return list(inspect.signature(_MODELS[name]).parameters)


def create(name: str, /, **kwargs: Any) -> ImageModel:
    """A new model with random weights.

    Args:
        name: one of `list_models()`.
        **kwargs: arguments of the model's class, such as ``image_size``, ``channels`` and ``latent``.

    Raises:
        ValueError: for an unknown name, or an argument out of range.
        TypeError: for an argument that the model does not have.
    """
    allowed = list_arguments(name)
    for argument in kwargs:
        if argument not in allowed:
            raise TypeError(f"{name}: unknown argument {argument!r}; allowed are {', '.join(allowed)}")
    return _MODELS[name](**kwargs)
