# SPDX-License-Identifier: MIT
"""Real models on real digits, from the same seed, through the native kernels and through the PyTorch reference."""

from __future__ import annotations

import contextlib

import pytest

import genimg_fast
from genimg_fast.training import train
from tests.training._runs import config

CONV_VAE = {"model": "conv_vae", "model_args": {"width": 8, "latent": 16}}
DCGAN = {"model": "dcgan", "model_args": {"width": 8, "latent": 16}}


@pytest.mark.parametrize("variant", [None, "direct"])
@pytest.mark.parametrize(
    ("kind", "losses", "parts"),
    [(CONV_VAE, ("loss",), ("reconstruction", "kl")), (DCGAN, ("discriminator_loss", "generator_loss"), ())],
    ids=["conv_vae", "dcgan"],
)
def test_the_first_twenty_losses_agree(tmp_path, kind, losses, parts, variant):
    """What is minimised agrees to 1e-4 whichever kernels run.

    So do its parts where the convolution adds up as PyTorch's does.  Another order of adding can put a ReLU of this data, whose
    flat background gives many equal values, on the other side of its kink, and the KL term, a hundredth of the loss, moves
    by 2e-4.
    """
    names = losses if variant is None else losses + parts
    force = genimg_fast.backends.cpu.force_variant(variant) if variant else contextlib.nullcontext()
    curves = {}
    for backend in ("native", "reference"):
        with force if backend == "native" else contextlib.nullcontext(), genimg_fast.use_backend(backend):
            result = train(config(tmp_path / backend, kind, image_size=32, batch_size=16, max_steps=20), progress=False)
        curves[backend] = [[r[name] for name in names] for r in result.history if r["split"] == "train"]
    assert len(curves["native"]) == 20
    assert curves["native"][0] != curves["native"][-1]
    for native, reference in zip(curves["native"], curves["reference"], strict=True):
        assert native == pytest.approx(reference, rel=1e-4)
    # Had both gone through the same kernels, the last bits would agree too.
    assert curves["native"] != curves["reference"]
