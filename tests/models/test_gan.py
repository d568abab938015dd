# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from torch import nn

from genimg_fast import models
from tests import _cases


def test_dcgan_is_100_512_256_128_64_3():
    model = models.create("dcgan")
    deconvolutions = [m for m in model.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.in_channels for m in deconvolutions] == [100, 512, 256, 128, 64]
    assert deconvolutions[-1].out_channels == 3
    convolutions = [m for m in model.discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    assert not isinstance(model.discriminator.main[-1], nn.Sigmoid)
    assert len(model.generator.main.plan()) == len(model.discriminator.main.plan()) == 5


class PlainGenerator(nn.Module):
    """As people write it, with torch.nn alone."""

    def __init__(self, latent, width, channels):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(latent, width * 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(width * 8),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 8, width * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z)


class PlainDiscriminator(nn.Module):
    def __init__(self, width, channels):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width * 2, width * 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width * 4, width * 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width * 8, 1, 4, 1, 0, bias=False),
        )

    def forward(self, x):
        return self.main(x).view(-1)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_dcgan_takes_the_weights_of_a_plain_one_and_gives_them_back(mode):
    model = models.create("dcgan", width=4, latent=6).double().train(mode == "train")
    plain = [PlainGenerator(6, 4, 3).double(), PlainDiscriminator(4, 3).double()]
    x = _cases.randn((3, 6, 1, 1), torch.float64)
    for ours, theirs in zip((model.generator, model.discriminator), plain, strict=True):
        theirs(2 * x)  # running statistics that are not the initial ones
        theirs.train(mode == "train")
        ours.load_state_dict(theirs.state_dict(), strict=True)
        out = ours(x)
        torch.testing.assert_close(out, theirs(x))
        theirs.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
        x = out.detach()


@pytest.mark.parametrize("name", ["dcgan", "block_gan"])
def test_initial_values_are_those_of_the_paper(name):
    model = models.create(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 10000:
            assert module.weight.mean().abs() < 0.002
            assert module.weight.std().sub(0.02).abs() < 0.002
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().sub(1).abs() < 0.02
            assert 0.01 < module.weight.std() < 0.03
            assert not module.bias.any()


def test_block_gan_projects_and_stacks_blocks():
    model = models.create("block_gan", width=4, latent=6)
    assert model.generator.project(torch.zeros(2, 6)).shape == (2, 32, 4, 4)
    for block in model.generator.blocks:
        conv = block[0]
        assert (conv.kernel_size, conv.stride, conv.padding) == ((4, 4), (2, 2), (1, 1))
        assert len(block.plan()) == 1


def test_dense_gan_is_dense_with_a_convolutional_discriminator():
    model = models.create("dense_gan", hidden=8)
    kinds = [type(m) for m in model.generator.main]
    assert kinds[:9] == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU] * 3
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in model.generator.modules())
    assert sum(isinstance(m, nn.Dropout) for m in model.discriminator.modules()) == 2
    model.discriminator.train()
    x = torch.zeros(2, 1, 28, 28).normal_()
    assert not torch.equal(model.discriminator(x), model.discriminator(x))


@pytest.mark.parametrize("name", ["dcgan", "block_gan", "dense_gan"])
def test_parts(name):
    model = models.create(name)
    z = _cases.randn((2, *model.latent_shape))
    fake = model(z)
    torch.testing.assert_close(fake, model.generator(z))  # batch statistics: the same whatever the running ones
    assert fake.shape == (2, *model.image_shape)
    assert fake.abs().max() <= 1
    assert fake.min() < 0
    assert model.discriminator(fake).shape == (2,)
    torch.testing.assert_close(model.eval().latent_to_images(z), (model(z) + 1) / 2)
