# SPDX-License-Identifier: MIT
"""One training step of a generative adversarial network (Goodfellow et al. 2014, as trained by Radford et al. 2016)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from genimg_fast import functional
from genimg_fast.models import GAN
from genimg_fast.training import metrics
from genimg_fast.training._update import accumulate, adam, update
from genimg_fast.training.config import TrainConfig


class GANObjective:
    """The discriminator steps on real and generated images, then the generator steps against the updated discriminator.

    Both steps use the same noise.  Real and generated images go through the discriminator apart, each with batch
    statistics of its own.
    """

    metric = "kernel_distance"
    higher_is_better = False

    def __init__(self, model: GAN, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.latent_shape = model.latent_shape
        # Under DDP `generator` and `discriminator` are wrappers; the generator's step goes through the bare discriminator,
        # whose gradients it does not want.
        self.bare_discriminator = model.discriminator
        self.generator, self.discriminator, generator_optimizer, discriminator_optimizer = accelerator.prepare(
            model.generator,
            model.discriminator,
            adam(model.generator, config.lr, config),
            adam(model.discriminator, config.discriminator_lr, config),
        )
        self.optimizers = {"generator": generator_optimizer, "discriminator": discriminator_optimizer}

    @staticmethod
    def default_settings(config: TrainConfig) -> TrainConfig:
        config = config.with_defaults(lr=2e-4, betas=(0.5, 0.999))
        return dataclasses.replace(config, discriminator_lr=config.discriminator_lr or config.lr)

    def step(self, batches: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Updates discriminator and generator once each from the gradients of all `batches` of images in [0, 1].

        Returns:
            discriminator_loss and generator_loss, as scalars on the device.
        """
        parts = [
            (images * 2 - 1, torch.randn(len(images), *self.latent_shape, device=images.device)) for images in batches
        ]
        # One batch a step: what the discriminator sees is kept with its graph for the generator's step.  More: keeping all
        # their graphs would cost the memory that accumulation is there to save, so they are generated again.
        keep = len(parts) == 1
        fake = torch.empty(0)
        discriminator_loss = generator_loss = torch.zeros((), device=batches[0].device)

        with nullcontext() if keep else _buffers_restored(self.generator):  # which the second pass over `parts` moves
            for real, z in accumulate(self.accelerator, self.discriminator, parts):
                with torch.set_grad_enabled(keep):
                    fake = self.generator(z)
                loss = self._discriminator_loss(real, fake.detach())
                self.accelerator.backward(loss / len(parts))
                discriminator_loss = discriminator_loss + loss.detach() / len(parts)
        update(self.accelerator, self.optimizers["discriminator"], self.discriminator, self.config.grad_clip)

        with _frozen(self.bare_discriminator):
            for _, z in accumulate(self.accelerator, self.generator, parts):
                logits = self.bare_discriminator(fake if keep else self.generator(z))
                with self.accelerator.autocast():
                    loss = functional.gan_loss(logits, True, self.config.gan_loss, generator=True)
                self.accelerator.backward(loss / len(parts))
                generator_loss = generator_loss + loss.detach() / len(parts)
        update(self.accelerator, self.optimizers["generator"], self.generator, self.config.grad_clip)
        return {"discriminator_loss": discriminator_loss, "generator_loss": generator_loss}

    def _discriminator_loss(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        kind = self.config.gan_loss
        real_logits, fake_logits = self.discriminator(real), self.discriminator(fake)
        with self.accelerator.autocast():
            loss = functional.gan_loss(real_logits, True, kind) + functional.gan_loss(fake_logits, False, kind)
        if self.config.gradient_penalty:
            penalty = functional.gradient_penalty(self.bare_discriminator, real, fake)
            loss = loss + self.config.gradient_penalty * penalty
        return loss

    @staticmethod
    def validate(model: GAN, test_data: Dataset, *, batch_size: int, seed: int) -> dict[str, float]:
        return metrics.kernel_distance(model, test_data, batch_size=batch_size, seed=seed)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Without gradients for the weights of `module`: they are not wanted, and cost a third of its backward."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    """Without a trace in the buffers of `module`: its running statistics are those that it had before."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(module.buffers(), before, strict=True):
            buffer.copy_(value)
