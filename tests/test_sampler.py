# SPDX-License-Identifier: MIT
"""The sampler on the CPU.  What it does on a GPU is checked by tests/gpu_check."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import nn

import genimg_fast
from genimg_fast import Sampler, models


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def dcgan():
    torch.manual_seed(0)
    return models.create("dcgan", image_size=32, width=4, latent=8).eval()


@pytest.mark.parametrize("name", ["dcgan", "block_gan", "conv_vae", "vae"])
def test_a_batch_is_what_the_model_samples(name):
    torch.manual_seed(0)
    model = models.create(name, **({} if name == "vae" else {"image_size": 32, "width": 4})).eval()
    images = Sampler(model, 5, generator=seeded()).sample(5)
    assert torch.equal(images, model.sample(5, generator=seeded()))
    assert not images.requires_grad


def test_all_ways_give_the_same_images(dcgan):
    whole = Sampler(dcgan, 4, generator=seeded()).sample(10)
    endless = torch.cat(list(islice(Sampler(dcgan, 4, generator=seeded()), 3)))
    streamed = list(Sampler(dcgan, 4, generator=seeded()).stream(10))
    assert whole.shape == (10, 3, 32, 32)
    assert [len(batch) for batch in streamed] == [4, 4, 2]
    assert torch.equal(torch.cat(streamed), whole)
    torch.testing.assert_close(endless[:10], whole)  # the last batch of ten is made as a batch of two


def test_noise_goes_on_from_call_to_call(dcgan):
    sampler = Sampler(dcgan, 4, generator=seeded())
    first, second = sampler.sample(4), sampler.sample(4)
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat([first, second]), Sampler(dcgan, 4, generator=seeded()).sample(8))


def test_manual_seed_is_the_default_generator(dcgan):
    torch.manual_seed(3)
    images = Sampler(dcgan, 4).sample(4)
    torch.manual_seed(3)
    assert torch.equal(images, dcgan.sample(4))


def test_any_generator_of_images(dcgan):
    plain = nn.Sequential(nn.ConvTranspose2d(8, 3, 4), nn.Tanh()).eval()
    z = torch.randn(2, 8, 1, 1, generator=seeded())
    expected = plain(z)
    for _ in range(2):
        images = Sampler(plain, 2, latent_shape=(8, 1, 1), generator=seeded()).sample(2)
        torch.testing.assert_close(images, expected)
        genimg_fast.fuse(plain)
    doubled = Sampler(plain.double(), 2, latent_shape=(8, 1, 1), generator=seeded()).sample(2)
    torch.testing.assert_close(doubled, expected.double(), atol=1e-5, rtol=0)  # from the same noise


def test_new_weights_are_used(dcgan):
    model = models.create("dcgan", image_size=32, width=4, latent=8).eval()
    sampler = Sampler(model, 2, generator=seeded())
    before = sampler.sample(2)
    with torch.no_grad():
        next(model.generator.parameters()).mul_(2)
    sampler.generator.manual_seed(0)
    after = sampler.sample(2)
    assert not torch.equal(before, after)
    assert torch.equal(after, model.sample(2, generator=seeded()))


def test_autocast_does_not_reach_it(dcgan):
    with torch.autocast("cpu", torch.bfloat16):
        images = Sampler(dcgan, 2, generator=seeded()).sample(2)
    assert torch.equal(images, dcgan.sample(2, generator=seeded()))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((nn.Conv2d(1, 1, 1), 4), {}, TypeError, "latent_shape must be given for a Conv2d"),
        ((nn.Tanh(), 4), {"latent_shape": (3,)}, ValueError, "the Tanh has no parameters"),
        ((nn.Linear(3, 3), 0), {"latent_shape": (3,)}, ValueError, "batch_size must be at least 1, got 0"),
        ((nn.Linear(3, 3), 2.5), {"latent_shape": (3,)}, TypeError, "batch_size must be an integer, got 2.5"),
        ((nn.Linear(3, 3), 2), {"latent_shape": 8}, TypeError, "latent_shape must be several integers, .* got 8"),
        ((nn.Linear(3, 3), 2), {"latent_shape": "8"}, TypeError, "latent_shape must be several integers, .* got '8'"),
        (
            (nn.Linear(3, 3), 2),
            {"latent_shape": (3,), "generator": 3},
            TypeError,
            "generator must be a torch.Generator",
        ),
        ((torch.zeros, 2), {"latent_shape": (3,)}, TypeError, "model must be a torch.nn.Module, got builtin_function"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, options, error, message):
    with pytest.raises(error, match=f"^Sampler: {message}"):
        Sampler(*arguments, **options)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.Dropout()])
def test_a_layer_in_training_mode_is_named(layer):
    model = nn.Sequential(nn.ConvTranspose2d(2, 4, 4), nn.Sequential(nn.ReLU(), layer)).eval()
    genimg_fast.fuse(model)
    sampler = Sampler(model, 2, latent_shape=(2, 1, 1))
    model[1][0].train()
    sampler.sample(2)  # a ReLU does not mind
    layer.train()
    with pytest.raises(ValueError, match=r"^Sampler: 1\.1 of the model is in training mode; call model.eval\(\) first"):
        sampler.sample(2)
    assert getattr(layer, "num_batches_tracked", 0) == 0


def test_a_model_in_training_mode_is_refused(dcgan):
    sampler = Sampler(dcgan, 2)
    with pytest.raises(ValueError, match=r"^Sampler: n must be at least 1, got 0"):
        sampler.sample(0)
    with pytest.raises(TypeError, match=r"^Sampler: n must be an integer, got 2\.5"):
        sampler.sample(2.5)
    with pytest.raises(ValueError, match=r"^Sampler: n must be at least 1, got 0"):
        sampler.stream(0)  # at once, not when it is read
    dcgan.train()
    try:
        for take in (lambda: sampler.sample(2), lambda: next(iter(sampler)), lambda: next(sampler.stream(2))):
            with pytest.raises(ValueError, match=r"training mode; call model.eval\(\) first"):
                take()
    finally:
        dcgan.eval()
