# SPDX-License-Identifier: MIT
"""One training step of a variational autoencoder (Kingma and Welling 2014): minimise the negative ELBO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from genimg_fast import functional
from genimg_fast.models import VAE
from genimg_fast.training import metrics
from genimg_fast.training._update import accumulate, adam, update
from genimg_fast.training.config import TrainConfig


class VAEObjective:
    """Minimises reconstruction + beta * KL, both summed over an image and averaged over the batch."""

    metric = "elbo"
    higher_is_better = True

    def __init__(self, model: VAE, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.reconstruction = model.reconstruction
        self.model, optimizer = accelerator.prepare(model, adam(model, config.lr, config))
        self.optimizers = {"model": optimizer}

    @staticmethod
    def default_settings(config: TrainConfig) -> TrainConfig:
        return config.with_defaults(lr=1e-3, betas=(0.9, 0.999))

    def step(self, batches: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Updates the weights once from the gradients of all `batches` of images (N, C, H, W) in [0, 1].

        Returns:
            loss, reconstruction and kl in nats an image, as scalars on the device.
        """
        sums: dict[str, torch.Tensor] = {}
        for images in accumulate(self.accelerator, self.model, batches):
            recon, posterior = self.model(images)
            with self.accelerator.autocast():
                loss, reconstruction, kl = functional.elbo_loss(
                    recon,
                    images,
                    posterior.mu,
                    posterior.logvar,
                    reconstruction=self.reconstruction,
                    beta=self.config.beta,
                    reduction="batchmean",
                )
            self.accelerator.backward(loss / len(batches))
            for name, value in (("loss", loss), ("reconstruction", reconstruction), ("kl", kl)):
                sums[name] = sums.get(name, 0) + value.detach() / len(batches)
        update(self.accelerator, self.optimizers["model"], self.model, self.config.grad_clip)
        return sums

    @staticmethod
    def validate(model: VAE, test_data: Dataset, *, batch_size: int, seed: int) -> dict[str, float]:
        return metrics.elbo(model, test_data, batch_size=batch_size, seed=seed)
