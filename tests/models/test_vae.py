# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from genimg_fast import models
from genimg_fast.models import DiagonalGaussian
from tests import _cases


def test_dense_vae_is_784_400_20():
    model = models.create("vae")
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (784, 400),
        (400, 20),
        (400, 20),
        (20, 400),
        (400, 784),
    ]


@pytest.mark.parametrize(("image_size", "widths"), [(32, [32, 64, 128]), (64, [32, 64, 128, 256])])
def test_conv_vae_mirrors_its_encoder(image_size, widths):
    model = models.create("conv_vae", image_size=image_size)
    assert [m.out_channels for m in model.encoder.modules() if isinstance(m, nn.Conv2d)] == widths
    up = [m.out_channels for m in model.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert up == [*widths[-2::-1], 3]
    logits = model.decode(torch.zeros(2, 64))
    assert logits.shape == (2, 3, image_size, image_size)


def test_posterior():
    mu, logvar = _cases.randn((3, 5), seed=1), _cases.randn((3, 5), seed=2)
    posterior = DiagonalGaussian(mu, logvar)
    assert posterior.mode() is mu
    normal = torch.distributions.Normal(mu, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(posterior.kl(), expected)
    samples = DiagonalGaussian(mu.expand(20000, 3, 5), logvar.expand(20000, 3, 5)).sample()
    torch.testing.assert_close(samples.mean(0), mu, atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), (logvar / 2).exp(), atol=0.05, rtol=0.05)


def test_posterior_samples_repeat_with_the_generator_and_carry_gradients():
    mu, logvar = torch.zeros(3, 5, requires_grad=True), torch.zeros(3, 5, requires_grad=True)
    posterior = DiagonalGaussian(mu, logvar)
    z = posterior.sample(torch.Generator().manual_seed(1))
    assert torch.equal(z, posterior.sample(torch.Generator().manual_seed(1)))
    grad_mu, grad_logvar = torch.autograd.grad(z.sum(), (mu, logvar))
    torch.testing.assert_close(grad_mu, torch.ones(3, 5))
    torch.testing.assert_close(grad_logvar, z.detach() / 2)


@pytest.mark.parametrize("reconstruction", ["bce_with_logits", "mse"])
def test_images_are_the_reconstruction_of_the_mode(reconstruction):
    model = models.create("vae", hidden=8, latent=3, reconstruction=reconstruction).eval()
    x = torch.rand(4, 1, 28, 28)
    recon = model.decode(model.encode(x).mu).detach()
    if reconstruction == "mse":
        assert (recon < 0).any()  # so that the clamp below does something
    expected = recon.sigmoid() if reconstruction == "bce_with_logits" else recon.clamp(0, 1)
    torch.testing.assert_close(model.reconstruct(x), expected)
    assert not model.reconstruct(x).requires_grad


def test_forward_decodes_a_sample_of_the_posterior():
    model = models.create("conv_vae", width=2, latent=3).eval()
    x = torch.rand(4, 3, 32, 32)
    recon, posterior = model(x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(recon, model.decode(posterior.sample(torch.Generator().manual_seed(1))))
    assert not torch.equal(recon, model.decode(posterior.mode()))


def test_learns_to_reconstruct():
    model = models.create("vae", image_size=32, hidden=64, latent=8)
    x = torch.zeros(8, 1, 32, 32)
    for i in range(8):
        x[i, :, 4 * i : 4 * i + 4] = 1.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        recon, posterior = model(x)
        (nn.functional.binary_cross_entropy_with_logits(recon, x) + 1e-3 * posterior.kl().mean()).backward()
        optimizer.step()
    error = (model.reconstruct(x) - x).abs().mean()
    assert error < 0.1  # the mean image has 0.22


def test_images_of_another_shape_get_one_clear_line():
    model = models.create("conv_vae", width=2)
    with pytest.raises(ValueError, match=r"conv_vae: x must have shape \(N, 3, 32, 32\), got \(2, 3, 28, 28\)"):
        model.encode(torch.zeros(2, 3, 28, 28))


def test_copy_is_apart():
    model = models.create("vae", hidden=4, latent=2)
    twin = copy.deepcopy(model)
    twin.mu.weight.data.zero_()
    assert model.mu.weight.abs().sum() > 0
