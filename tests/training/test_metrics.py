# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch

from genimg_fast import data, models
from genimg_fast.training import metrics


@pytest.fixture(scope="module")
def digits():
    return data.open_dataset("digits", split="test", image_size=8, channels=1)


def test_elbo_is_the_mean_over_all_images_whatever_the_batches(digits):
    model = models.create("vae", image_size=8, hidden=8, latent=2).eval()
    values = metrics.elbo(model, digits, batch_size=50, seed=0)  # the last batch is smaller
    x = torch.stack([digits[i] for i in range(len(digits))])
    with torch.no_grad():
        posterior = model.encode(x)
        kl = posterior.kl().mean().item()
    assert values["kl"] == pytest.approx(kl, rel=1e-4)
    assert values["elbo"] == pytest.approx(-values["reconstruction"] - values["kl"])
    assert metrics.elbo(model, digits, batch_size=50, seed=0) == values


def test_elbo_of_a_model_that_ignores_its_latent_is_the_cross_entropy(digits):
    model = models.create("vae", image_size=8, hidden=8, latent=2).eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
    values = metrics.elbo(model, digits, batch_size=64, seed=0)
    assert values["kl"] == pytest.approx(0, abs=1e-6)
    assert values["reconstruction"] == pytest.approx(64 * torch.tensor(2.0).log().item(), rel=1e-5)


def test_mmd2_is_the_textbook_sum():
    x, y = torch.randn(5, 3).double(), torch.randn(7, 3).double()

    def k(a, b):
        return (a.dot(b) / 3 + 1) ** 3

    def mean(pairs):
        return torch.stack([k(a, b) for a, b in pairs]).mean()

    expected = (
        mean([(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
        + mean([(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
        - 2 * mean([(a, b) for a in x for b in y])
    )
    torch.testing.assert_close(metrics.mmd2(x, y), expected)


class Fixed(models.GAN):
    """A "GAN" that samples what it is told to."""

    name = "fixed"

    def __init__(self, images):
        super().__init__((1, 8, 8), (1,), {})
        self.images = torch.nn.Parameter(images, requires_grad=False)

    def sample(self, n, generator=None):
        return self.images[torch.randint(len(self.images), (n,), generator=generator)]


def test_kernel_distance_orders_what_it_promises_to_notice(digits):
    train = data.open_dataset("digits", split="train", image_size=8, channels=1)
    real = torch.stack([train[i] for i in range(600)])

    def distance(images):
        return metrics.kernel_distance(Fixed(images), digits, batch_size=64, seed=0)["kernel_distance"]

    same = distance(real)
    assert abs(same) < 0.01
    worse = {
        "brightness": real * 0.5,
        "layout": real.roll(4, -1),
        "one mode": real[:1].expand(600, -1, -1, -1),
        "grey": torch.full_like(real, 0.5),
        "noise": torch.rand_like(real),
    }
    for name, images in worse.items():
        assert distance(images) > 10 * max(abs(same), 1e-3), name
