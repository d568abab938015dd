# SPDX-License-Identifier: MIT
"""What every model promises."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import genimg_fast
from genimg_fast import models
from tests import _cases

SMALL = {
    "vae": {"hidden": 16, "latent": 4},
    "vae, color, mse": {"image_size": 9, "channels": 3, "hidden": 16, "latent": 4, "reconstruction": "mse"},
    "conv_vae": {"width": 4, "latent": 6},
    "conv_vae, 64": {"image_size": 64, "channels": 1, "width": 2, "latent": 6},
    "dcgan": {"width": 2, "latent": 6},
    "dcgan, 32": {"image_size": 32, "channels": 1, "width": 4, "latent": 6},
    "block_gan": {"width": 2, "latent": 6},
    "block_gan, 32": {"image_size": 32, "channels": 1, "width": 4, "latent": 6},
    "dense_gan": {"hidden": 8, "latent": 6},
    "dense_gan, 31": {"image_size": 31, "channels": 3, "hidden": 8, "latent": 6, "dropout": 0.5},
}


@pytest.fixture(params=SMALL)
def model(request):
    return models.create(request.param.partition(",")[0], **SMALL[request.param])


def images(model: models.ImageModel, n: int = 3) -> torch.Tensor:
    return torch.rand(n, *model.image_shape, generator=torch.Generator().manual_seed(1))


def step(model: models.ImageModel, dtype: torch.dtype) -> list[torch.Tensor]:
    """The outputs of one training step of every part of the model; the gradients stay in the parameters."""
    torch.manual_seed(2)  # of dropout and of the posterior's samples
    x = images(model).to(dtype)
    if isinstance(model, models.VAE):
        recon, posterior = model(x)
        outputs = [recon, posterior.mu, posterior.logvar]
        loss = (recon - x).square().mean() + posterior.kl().mean()
    else:
        fake = model.generator(_cases.randn((3, *model.latent_shape), dtype))
        outputs = [fake, model.discriminator(2 * x - 1), model.discriminator(fake)]
        loss = nn.functional.softplus(outputs[1]).sum() + outputs[2].square().sum()
    loss.backward()
    return [t.detach() for t in outputs]


def test_every_model_is_tested():
    assert {name.partition(",")[0] for name in SMALL} == set(models.list_models())


def test_weights_and_numbers_are_those_of_the_plain_twin(model):
    model = model.double()
    twin = genimg_fast.unfuse(copy.deepcopy(model))
    assert not [
        m
        for s in twin.modules()
        if isinstance(s, nn.Sequential)
        for m in s.modules()
        if "genimg_fast" in type(m).__module__
    ]
    assert any(isinstance(m, genimg_fast.nn.FusedSequential) for m in model.modules())

    torch.testing.assert_close(step(model, torch.float64), step(twin, torch.float64))
    torch.testing.assert_close(*({n: p.grad for n, p in m.named_parameters()} for m in (model, twin)))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))  # running statistics

    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    model.load_state_dict(twin.state_dict(), strict=True)
    twin.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(step(model.eval(), torch.float64), step(twin.eval(), torch.float64))


def test_config_builds_the_same_architecture(model):
    config = json.loads(json.dumps(model.config))
    again = models.create(model.name, **config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict(), strict=True)


def test_samples_are_images(model):
    model.eval()
    before = copy.deepcopy(model.state_dict())
    sample = model.sample(3, torch.Generator().manual_seed(5))
    assert sample.shape == (3, *model.image_shape)
    assert sample.isfinite().all()
    assert sample.min() >= 0
    assert sample.max() <= 1
    assert not sample.requires_grad
    assert torch.equal(sample, model.sample(3, torch.Generator().manual_seed(5)))
    assert not torch.equal(sample, model.sample(3, torch.Generator().manual_seed(6)))
    z = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample, model.latent_to_images(z).detach())
    assert model.sample(0).shape == (0, *model.image_shape)
    torch.testing.assert_close(dict(model.state_dict()), dict(before))


def test_sample_has_the_dtype_of_the_weights(model):
    assert model.double().sample(2).dtype == torch.float64


def test_compiles_in_one_graph(model):
    torch._dynamo.reset()
    model.eval()
    z = _cases.randn((2, *model.latent_shape))
    compiled = torch.compile(model.latent_to_images, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z), model.latent_to_images(z))


def test_wrong_latents_get_one_clear_line(model):
    with pytest.raises(ValueError, match=rf"{model.name}: z must have shape \(N, .*\), got \(2, 7\)"):
        model.latent_to_images(torch.zeros(2, 7))


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("gan", {}, ValueError, "model must be one of 'vae', 'conv_vae', 'dcgan', 'block_gan', 'dense_gan', got 'gan'"),
        (
            "dcgan",
            {"size": 3},
            TypeError,
            "dcgan: unknown argument 'size'; allowed are image_size, channels, width, latent",
        ),
        ("conv_vae", {"image_size": 48}, ValueError, "conv_vae: image_size must be 32 or 64, got 48"),
        ("dcgan", {"image_size": 48}, ValueError, "dcgan: image_size must be 32 or 64, got 48"),
        ("block_gan", {"image_size": "32"}, ValueError, "block_gan: image_size must be 32 or 64, got '32'"),
        ("vae", {"image_size": 0}, ValueError, "vae: image_size must be a positive integer, got 0"),
        (
            "dcgan",
            {"name": 3},
            TypeError,
            "dcgan: unknown argument 'name'; allowed are image_size, channels, width, latent",
        ),
        ("dcgan", {"width": -1}, ValueError, "dcgan: width must be a positive integer, got -1"),
        ("dense_gan", {"latent": 2.5}, ValueError, "dense_gan: latent must be a positive integer, got 2.5"),
        ("vae", {"hidden": True}, ValueError, "vae: hidden must be a positive integer, got True"),
        (
            "dense_gan",
            {"dropout": "abc"},
            ValueError,
            "dense_gan: dropout must be at least 0 and less than 1, got 'abc'",
        ),
        ("dense_gan", {"dropout": 2}, ValueError, r"dense_gan: dropout must be at least 0 and less than 1, got 2"),
        (
            "vae",
            {"reconstruction": "l1"},
            ValueError,
            "vae: reconstruction must be 'bce_with_logits' or 'mse', got 'l1'",
        ),
    ],
)
def test_bad_arguments_get_one_clear_line(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        models.create(name, **kwargs)
