# SPDX-License-Identifier: MIT
"""Real models on real digits, from the same seed, through the native kernels and through the PyTorch reference."""

from __future__ import annotations

import pytest
import torch

import genimg_fast
from genimg_fast import _backend, functional
from genimg_fast.data import arrays
from genimg_fast.training import train
from tests.training._runs import config

CONV_VAE = {"model": "conv_vae", "model_args": {"width": 8, "latent": 16}}
DCGAN = {"model": "dcgan", "model_args": {"width": 8, "latent": 16}}
MODELS = pytest.mark.parametrize(
    ("kind", "losses"),
    [(CONV_VAE, ("loss", "reconstruction", "kl")), (DCGAN, ("discriminator_loss", "generator_loss"))],
    ids=["conv_vae", "dcgan"],
)


@MODELS
def test_the_first_losses_agree(tmp_path, kind, losses):
    """Of three steps.  After a few more the curves part, on which one depends on how PyTorch rounds on this CPU: seen at step 4.

    The flat background of digits gives many equal values, so another order of adding can put a whole patch of a ReLU on the
    other side of its kink, and Adam's first steps turn the sign of a gradient near 0 into a whole step.
    """
    # on a GPU convolutions multiply in TF32
    assert_same_curves(tmp_path, kind, losses, steps=3, rel=1e-2 if torch.cuda.is_available() else 1e-3)


@pytest.fixture
def in_float64(monkeypatch):
    """All that a run computes; its noise, whose digits are those of float32 everywhere, is drawn by the reference alone."""
    draw = functional.reparameterize

    def draw_alike(*args, **kwargs):
        with genimg_fast.use_backend("reference"):
            return draw(*args, **kwargs)

    monkeypatch.setattr(functional, "reparameterize", draw_alike)
    monkeypatch.setattr(arrays, "to_unit_range", lambda image: image.double().div_(255))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@MODELS
def test_twenty_losses_agree_in_float64(tmp_path, in_float64, kind, losses):
    if torch.cuda.is_available():
        pytest.skip("no kernel for a GPU takes float64")
    assert_same_curves(tmp_path, kind, losses, steps=20, rel=1e-10)


def assert_same_curves(folder, kind, losses, steps, rel):
    curves = {}
    for backend in ("native", "reference"):
        before = _backend.native_calls()
        with genimg_fast.use_backend(backend):
            result = train(
                config(folder / backend, kind, image_size=32, batch_size=16, max_steps=steps), progress=False
            )
        assert (_backend.native_calls() > before) == (backend == "native")
        curves[backend] = [r for r in result.history if r["split"] == "train"]
    assert len(curves["native"]) == steps
    for native, reference in zip(curves["native"], curves["reference"], strict=True):
        assert [native[name] for name in losses] == pytest.approx([reference[name] for name in losses], rel=rel)
    minimised = [record[losses[0]] for record in curves["native"]]
    assert minimised[0] != minimised[-1]
