# SPDX-License-Identifier: MIT
"""How good a model is on images it was not trained on.  Both metrics draw from a generator of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from genimg_fast import functional
from genimg_fast.models import GAN, VAE

_MOST_IMAGES = 1024
_THUMBNAIL = 8


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def elbo(model: VAE, test_data: Dataset, *, batch_size: int, seed: int) -> dict[str, float]:
    """The evidence lower bound on the test images, with beta = 1 and one draw from the posterior for each image.

    Returns:
        elbo = -(reconstruction + kl), reconstruction and kl, all in nats an image.  Higher is better for the elbo.  The
        reconstruction term is that of `functional.elbo_loss`: for grey values the Bernoulli cross-entropy is not the
        negative logarithm of a density, so compare it only with models that were given the same images and loss.
    """
    device = _device(model)
    generator = torch.Generator(device).manual_seed(seed)
    reconstruction_sum = kl_sum = 0.0
    images_seen = 0
    for images in DataLoader(test_data, batch_size, generator=torch.Generator()):
        images = images.to(device)
        posterior = model.encode(images)
        recon = model.decode(posterior.sample(generator=generator))
        _, reconstruction, kl = functional.elbo_loss(
            recon, images, posterior.mu, posterior.logvar, reconstruction=model.reconstruction, reduction="sum"
        )
        reconstruction_sum += reconstruction.item()
        kl_sum += kl.item()
        images_seen += len(images)
    reconstruction_mean, kl_mean = reconstruction_sum / images_seen, kl_sum / images_seen
    return {"elbo": -(reconstruction_mean + kl_mean), "reconstruction": reconstruction_mean, "kl": kl_mean}


@torch.no_grad()
def kernel_distance(model: GAN, test_data: Dataset, *, batch_size: int, seed: int) -> dict[str, float]:
    """Squared maximum mean discrepancy between test images and as many samples, on thumbnails of 8x8 pixels.

    The estimator and the cubic kernel are those of KID (Binkowski et al. 2018, unbiased, so it can fall slightly below 0),
    but the features are pixels and not those of an Inception network, which would have to be downloaded and knows
    photographs only.  It notices wrong brightness, colour and layout and missing modes; it is blind to texture.  It is not
    KID or FID: compare it only between models trained on the same images.

    Returns:
        kernel_distance, on at most 1024 images of each kind; lower is better.
    """
    device = _device(model)
    count = min(len(test_data), _MOST_IMAGES)  # type: ignore[arg-type]
    # Folders are sorted by class, so the first images would be one class.
    chosen = torch.randperm(len(test_data), generator=torch.Generator().manual_seed(seed))[:count]  # type: ignore[arg-type]
    loader = DataLoader(Subset(test_data, chosen.tolist()), batch_size, generator=torch.Generator())
    real = torch.cat([_thumbnails(images.to(device)) for images in loader])
    generator = torch.Generator(device).manual_seed(seed)
    sizes = [min(batch_size, count - done) for done in range(0, count, batch_size)]
    fake = torch.cat([_thumbnails(model.sample(size, generator=generator)) for size in sizes])
    return {"kernel_distance": mmd2(real, fake).item()}


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(images, _THUMBNAIL).flatten(1).double()


def mmd2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Unbiased squared maximum mean discrepancy of the rows of x (N, D) and y (M, D) under k(a, b) = (a.b / D + 1)^3."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.size(1) + 1) ** 3

    def mean_off_diagonal(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    return mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
