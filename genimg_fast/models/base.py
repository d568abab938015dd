# SPDX-License-Identifier: MIT
"""What all models share: their shapes and names, the posterior of a VAE, sampling."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from typing_extensions import Self

from genimg_fast import functional as F

_STAGES = {32: 3, 64: 4}
"""Image sizes that the convolutional models are made for: stages of stride 2 between the image and 4x4."""


class DiagonalGaussian(NamedTuple):
    """The posterior N(mu, exp(logvar)) of a VAE, with the verbs of diffusers' AutoencoderKL.

    A tuple of its two tensors, so that `torch.compile`, DDP and mixed precision wrappers see into it.
    """

    mu: torch.Tensor
    """(N, latent)"""
    logvar: torch.Tensor
    """(N, latent), the logarithm of the variance."""

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """A draw, differentiable in mu and logvar (reparameterised); (N, latent)."""
        return F.reparameterize(self.mu, self.logvar, generator=generator)

    def mode(self) -> torch.Tensor:
        """The most likely value, which is the mean; (N, latent)."""
        return self.mu

    def kl(self) -> torch.Tensor:
        """KL(posterior ‖ N(0, I)) of each example, in nats; (N,)."""
        return F.gaussian_kl_loss(self.mu, self.logvar, "none").flatten(1).sum(1)


class ImageModel(nn.Module):
    """A model that turns latents into images.

    Attributes:
        name: in the registry of `genimg_fast.models`.
        config: the constructor's arguments; ``create(model.name, **model.config)`` builds the same architecture.
        image_shape: (C, H, W).
        latent_shape: of one latent.
    """

    name: ClassVar[str]

    def __init__(self, image_shape: tuple[int, int, int], latent_shape: tuple[int, ...], config: dict[str, Any]):
        super().__init__()
        self.image_shape = image_shape
        self.latent_shape = latent_shape
        self.config = config

    def latent_to_images(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (N, *latent_shape) to images (N, C, H, W) in [0, 1]; differentiable."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """`n` images from z ~ N(0, I); (n, C, H, W) in [0, 1], without gradients.

        Runs in the model's mode: call ``eval()`` first to sample with the running statistics of batch normalisation.
        The noise is drawn on the generator's device, so a CPU generator gives the same z wherever the model is.

        Raises:
            TypeError: if n is no integer, or generator no generator.
            ValueError: if n is below 0.
        """
        if not isinstance(n, Integral):
            raise TypeError(f"sample: n must be an integer, got {n!r}")
        if n < 0:
            raise ValueError(f"sample: n must be at least 0, got {n}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"sample: generator must be a torch.Generator, got {type(generator).__name__}")
        parameter = next(self.parameters())
        device = parameter.device if generator is None else generator.device
        z = torch.randn(n, *self.latent_shape, generator=generator, device=device)
        return self.latent_to_images(z.to(parameter))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes model.safetensors and config.json into `folder`, which is made if there is none.

        Raises:
            OSError: if they cannot be written.
            ImportError: without safetensors, which the extra "hub" installs.
        """
        from genimg_fast.models import pretrained

        pretrained.save_folder(Path(folder), self)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None) -> Self:
        """The model that `save_pretrained` or `push_to_hub` wrote, in eval mode, on the CPU, with the dtypes of its weights.

        ``ImageModel.from_pretrained`` loads any model of this package, ``DCGAN.from_pretrained`` only a DCGAN.

        Args:
            source: a folder, or else a repository on the Hugging Face Hub, "owner/name".
            revision: branch, tag or commit of the repository.

        Raises:
            OSError: if there is no such folder or repository, or it cannot be read.
            ValueError: if what is there is damaged or is another model.
            ImportError: without the packages of the extra "hub".
        """
        from genimg_fast.models import pretrained

        model = pretrained.load_folder(pretrained.find(source, revision))
        if not isinstance(model, cls):
            raise ValueError(f"{source} holds {model.name}, which is no {cls.__name__}")
        return model

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Uploads what `save_pretrained` writes to "owner/name" on the Hugging Face Hub, as one commit; returns its URL.

        A repository that does not exist is created, `private` or not.  Log in with ``hf auth login`` or the variable HF_TOKEN.

        Raises:
            OSError: if the Hub refuses or cannot be reached.
            ImportError: without huggingface_hub, which the extra "hub" installs.
        """
        from genimg_fast.models import pretrained

        return pretrained.upload(self, repository, private=private)

    def _check_shape(self, argument: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
        if tuple(tensor.shape[1:]) != expected:
            shape = ", ".join(("N", *map(str, expected)))
            raise ValueError(f"{self.name}: {argument} must have shape ({shape}), got {tuple(tensor.shape)}")


class VAE(ImageModel):
    """Base of the variational autoencoders (Kingma and Welling 2014).

    A subclass sets ``encoder`` (images to features (N, F)), ``mu`` and ``logvar`` (features to (N, latent)) and ``decoder``
    (latents to reconstructions).

    Attributes:
        reconstruction: the likelihood of a pixel, as `functional.elbo_loss` names it: with "bce_with_logits" the decoder
            gives logits, with "mse" pixel values.
    """

    encoder: nn.Module
    mu: nn.Module
    logvar: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_shape: tuple[int, ...],
        reconstruction: str,
        config: dict[str, Any],
    ):
        super().__init__(image_shape, latent_shape, config)
        if reconstruction not in ("bce_with_logits", "mse"):
            raise ValueError(f"{self.name}: reconstruction must be 'bce_with_logits' or 'mse', got {reconstruction!r}")
        self.reconstruction = reconstruction

    def encode(self, x: torch.Tensor) -> DiagonalGaussian:
        """Images (N, C, H, W) in [0, 1] to their posterior.

        Raises:
            ValueError: for images of another shape.
        """
        self._check_shape("x", x, self.image_shape)
        features = self.encoder(x)
        return DiagonalGaussian(self.mu(features), self.logvar(features))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (N, latent) to reconstructions (N, C, H, W): logits, or pixel values if ``reconstruction`` is "mse".

        Raises:
            ValueError: for latents of another shape.
        """
        self._check_shape("z", z, self.latent_shape)
        return self.decoder(z)

    def forward(
        self, x: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, DiagonalGaussian]:
        """(reconstruction of a posterior sample, posterior): what `functional.elbo_loss` takes."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(generator)), posterior

    def latent_to_images(self, z: torch.Tensor) -> torch.Tensor:
        recon = self.decode(z)
        return recon.sigmoid() if self.reconstruction == "bce_with_logits" else recon.clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) through the posterior's mode and back, in [0, 1], without gradients."""
        return self.latent_to_images(self.encode(x).mode())


class GAN(ImageModel):
    """Base of the generative adversarial networks (Goodfellow et al. 2014).

    A subclass sets ``generator`` (latents (N, *latent_shape) to images in [-1, 1]) and ``discriminator`` (such images to
    logits (N,), large for real ones).
    """

    generator: nn.Module
    discriminator: nn.Module

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """The generator: latents (N, *latent_shape) to images (N, C, H, W) in [-1, 1].

        Raises:
            ValueError: for latents of another shape.
        """
        self._check_shape("z", z, self.latent_shape)
        return self.generator(z)

    def latent_to_images(self, z: torch.Tensor) -> torch.Tensor:
        return (self(z) + 1) / 2


def check_image_size(name: str, image_size: int) -> None:
    if image_size not in _STAGES:
        raise ValueError(f"{name}: image_size must be {' or '.join(map(str, _STAGES))}, got {image_size!r}")


def stage_widths(image_size: int, width: int) -> list[int]:
    """Channels of the stages from the image to 4x4, each of half the size and twice the channels."""
    return [width * 2**stage for stage in range(_STAGES[image_size])]


def check_positive(name: str, **values: int) -> None:
    for argument, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: {argument} must be a positive integer, got {value!r}")
