# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
from PIL import Image

from genimg_fast import _parity, cli
from genimg_fast.cli import demo
from genimg_fast.training import load_model

PICTURES = (
    "reconstructions.png",
    "conv_vae_samples.png",
    "dcgan_samples.png",
    "conv_vae_interpolation.png",
    "dcgan_interpolation.png",
    "losses.png",
)


@pytest.fixture
def tiny(monkeypatch):
    runs = {
        "conv_vae": demo.Run({"model_args": {"width": 4, "latent": 8}}, 0.5, 2, 2),
        "dcgan": demo.Run({"model_args": {"width": 4, "latent": 8}}, 0.5, 2, 2),
    }
    monkeypatch.setattr(demo, "RUNS", runs)
    monkeypatch.setattr(demo, "MEASURE_SECONDS", 0.0)


def test_demo_leaves_all_that_it_promises(tiny, tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--minutes", "0.01"]) == 0
    for picture in PICTURES:
        assert Image.open(out / picture).size[0] > 100
    for run in ("conv_vae", "dcgan"):
        assert load_model(out / run).name == run
        assert list((out / run / "logs").iterdir())
    table = capsys.readouterr().out.partition("demo  ")[2]
    for row in ("parity with the reference", "test ELBO of the VAE", "test ELBO of the mean image", "times as fast"):
        assert row in table
    demo._claim(out)  # its own folder it may use again
    assert not (out / "dcgan").exists()


def test_a_picture_that_cannot_be_made_fails_the_demo(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_draw_losses", lambda histories, path: None)
    assert not demo._pictures(tmp_path, {})  # there is no run
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in errors] == [
        f"genimg-fast {command}" for command in ("reconstruct", "sample", "interpolate", "sample", "interpolate")
    ]


def test_demo_leaves_other_folders_alone(tiny, tmp_path, capsys):
    mine = tmp_path / "dcgan" / "weights"
    mine.parent.mkdir()
    mine.write_text("months of work")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "is not empty and not of an earlier demo" in capsys.readouterr().err
    assert mine.read_text() == "months of work"


def test_a_wrong_kernel_fails_the_demo(monkeypatch):
    monkeypatch.setattr(_parity, "check", lambda op, device: _parity.Parity(0.1, op != "elbo_loss"))
    assert demo._parity_line(torch.device("cpu")) == (False, "FAIL: elbo_loss")
