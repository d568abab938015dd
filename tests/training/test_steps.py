# SPDX-License-Identifier: MIT
"""One step of each objective against the same step written out in plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from genimg_fast import models
from genimg_fast.training import TrainConfig
from genimg_fast.training.gan import GANObjective
from genimg_fast.training.vae import VAEObjective
from tests.training._runs import GAN, VAE


@pytest.fixture(autouse=True)
def _double_precision():
    """Adam turns the rounding error of a gradient near zero into a full step; in float64 there is none to speak of."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def settings(kind, **overrides):
    defaults = {
        "data": "digits",
        "out": "-",
        "image_size": 8,
        "lr": 0.01,
        "discriminator_lr": 0.01,
        "betas": (0.5, 0.9),
    }
    return TrainConfig(**{**defaults, **kind, **overrides})


def create(kind):
    torch.manual_seed(1)
    return models.create(kind["model"], image_size=8, channels=1, **kind["model_args"])


def images(n, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def on_cpu():
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # that of the last run in this process, which may be of a GPU
    return Accelerator(cpu=True)


def assert_close_weights(a, b):
    torch.testing.assert_close(dict(a.named_parameters()), dict(b.named_parameters()))


def test_vae_step():
    model = create(VAE)
    plain = copy.deepcopy(model)
    objective = VAEObjective(model, settings(VAE, beta=2.0, grad_clip=0.5, weight_decay=0.1), on_cpu())
    optimizer = torch.optim.AdamW(plain.parameters(), 0.01, (0.5, 0.9), weight_decay=0.1)
    for step in range(3):
        torch.manual_seed(step)
        losses = objective.step([images(6, step)])

        torch.manual_seed(step)
        recon, posterior = plain(images(6, step))
        reconstruction = F.binary_cross_entropy_with_logits(recon, images(6, step), reduction="sum") / 6
        kl = -0.5 * (1 + posterior.logvar - posterior.mu**2 - posterior.logvar.exp()).sum() / 6
        loss = reconstruction + 2.0 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()

        expected = {"loss": loss, "reconstruction": reconstruction, "kl": kl}
        torch.testing.assert_close(losses, {name: value.detach() for name, value in expected.items()})
        assert_close_weights(model, plain)


def plain_gan_losses(kind):
    if kind == "bce":
        bce = F.binary_cross_entropy_with_logits
        return (
            lambda real, fake: bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake)),
            lambda fake: bce(fake, torch.ones_like(fake)),
        )
    if kind == "hinge":
        return lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()
    return lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()


@pytest.mark.parametrize("kind", ["bce", "hinge", "wasserstein"])
def test_gan_step(kind):
    """The discriminator first, on detached images; then the generator, from the same noise, against the updated discriminator."""
    model = create(GAN)
    plain = copy.deepcopy(model)
    config = settings(GAN, gan_loss=kind, discriminator_lr=0.02)
    objective = GANObjective(model, config, on_cpu())
    generator_optimizer = torch.optim.Adam(plain.generator.parameters(), 0.01, (0.5, 0.9))
    discriminator_optimizer = torch.optim.Adam(plain.discriminator.parameters(), 0.02, (0.5, 0.9))
    discriminator_loss, generator_loss = plain_gan_losses(kind)
    for step in range(3):
        torch.manual_seed(step)
        losses = objective.step([images(6, step)])

        torch.manual_seed(step)
        fake = plain.generator(torch.randn(6, *plain.latent_shape))
        loss_d = discriminator_loss(plain.discriminator(images(6, step) * 2 - 1), plain.discriminator(fake.detach()))
        discriminator_optimizer.zero_grad()
        loss_d.backward()
        discriminator_optimizer.step()
        loss_g = generator_loss(plain.discriminator(fake))
        generator_optimizer.zero_grad()
        loss_g.backward()
        generator_optimizer.step()

        expected = {"discriminator_loss": loss_d.detach(), "generator_loss": loss_g.detach()}
        torch.testing.assert_close(losses, expected)
        assert_close_weights(model, plain)
    assert all(p.requires_grad for p in model.parameters())


def test_the_gradient_penalty_pulls_the_gradient_norm_towards_one():
    def norm_error(weight):
        model = create(GAN)
        objective = GANObjective(model, settings(GAN, gan_loss="wasserstein", gradient_penalty=weight), on_cpu())
        for step in range(20):
            torch.manual_seed(step)
            objective.step([images(8, step)])
        x = images(32, 99).mul(2).sub(1).requires_grad_()
        (gradient,) = torch.autograd.grad(model.discriminator.eval()(x).sum(), x)
        return (gradient.flatten(1).norm(dim=1) - 1).abs().mean()

    assert norm_error(10.0) < 0.5 * norm_error(0.0)


def without_batch_dependence(model):
    """Batch normalisation depends on how the images are split, dropout and sampling on the order of the draws."""
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.Dropout):
            model.set_submodule(name, torch.nn.Identity())
    return model


def accumulated_gradients(objective, batches):
    """Adam's first moments after one step, which are the gradients times 1 - beta1."""
    objective.step(batches)
    return {
        f"{name}.{i}": state["exp_avg"]
        for name, optimizer in objective.optimizers.items()
        for i, state in optimizer.state_dict()["state"].items()
    }


def test_vae_accumulation_gives_the_gradient_of_the_whole(monkeypatch):
    monkeypatch.setattr(models.DiagonalGaussian, "sample", lambda posterior, generator=None: posterior.mu)
    whole, split = (
        accumulated_gradients(
            VAEObjective(without_batch_dependence(create(VAE)), settings(VAE), on_cpu()),
            images(8).split(n),
        )
        for n in (8, 2)
    )
    torch.testing.assert_close(split, whole)


def test_gan_accumulation_gives_the_gradient_of_the_whole(monkeypatch):
    def gradients(n):
        left = list(torch.rand(8, 4, generator=torch.Generator().manual_seed(5)).split(n))
        monkeypatch.setattr(torch, "randn", lambda *shape, device: left.pop(0))
        model = without_batch_dependence(create(GAN))
        return accumulated_gradients(GANObjective(model, settings(GAN), on_cpu()), images(8).split(n))

    torch.testing.assert_close(gradients(2), gradients(8))


def test_gan_accumulation_moves_the_running_statistics_once_a_batch():
    model = create(GAN)
    plain = copy.deepcopy(model.generator)
    objective = GANObjective(model, settings(GAN), on_cpu())
    torch.manual_seed(0)
    objective.step(images(8).split(4))
    torch.manual_seed(0)
    for _ in range(2):
        plain(torch.randn(4, *model.latent_shape))
    torch.testing.assert_close(dict(model.generator.named_buffers()), dict(plain.named_buffers()))


def test_losses_hold_no_graph():
    objective = GANObjective(create(GAN), settings(GAN, grad_accumulation=2), on_cpu())
    losses = objective.step([images(6, 0), images(6, 1)])
    assert not any(loss.requires_grad for loss in losses.values())
