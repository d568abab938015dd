# SPDX-License-Identifier: MIT
"""train, sample, reconstruct, interpolate and models, end to end on runs of two steps."""

from __future__ import annotations

import argparse
import json
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from genimg_fast import cli, models
from genimg_fast.cli import _common
from genimg_fast.cli import train as train_command
from genimg_fast.cli.interpolate import slerp
from genimg_fast.cli.reconstruct import interleave
from genimg_fast.data import open_dataset, to_grid
from genimg_fast.training import TrainConfig, UserError, load_model
from tests.cli.conftest import SHORT, TRAIN


def test_train_writes_a_run(run_of):
    out = run_of("conv_vae")
    settings = json.loads((out / "config.json").read_text())["train"]
    assert (settings["batch_size"], settings["max_steps"], settings["model_args"]) == (8, 2, {"width": 4, "latent": 8})
    assert load_model(out).config["width"] == 4


def test_train_says_where_the_results_are(tmp_path, capsys):
    assert (
        cli.main(["train", "vae", "--data", "digits", "--image-size", "28", *SHORT, "--out", str(tmp_path / "run")])
        == 0
    )
    printed = capsys.readouterr().out
    assert re.match(r"2 steps, \d+ images/s; best elbo -[\d.]+ \(higher is better\)\n", printed)
    assert str(tmp_path / "run" / "checkpoints") in printed


def test_resume_goes_on(tmp_path, capsys):
    arguments = ["train", "conv_vae", *TRAIN, "--quiet", "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, "--max-steps", "2"]) == 0
    assert cli.main([*arguments, "--max-steps", "3"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main([*arguments, "--max-steps", "3", "--resume"]) == 0
    assert capsys.readouterr().out.startswith("3 steps, ")


def test_epochs_win_over_the_max_steps_of_the_run(tmp_path, capsys):
    out = str(tmp_path / "run")
    half = ["--data", "digits", "--image-size", "8", "--batch-size", "718", "--model-arg", "hidden=8"]
    assert cli.main(["train", "vae", *half, "--max-steps", "1", "--quiet", "--out", out]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--out", out, "--resume", "--epochs", "2", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("4 steps, ")


def test_flag_wins_over_file_wins_over_default(tmp_path, monkeypatch):
    file = tmp_path / "settings.yaml"
    file.write_text("epochs: 7\nbatch_size: 16\nmodel_args: {width: 4, latent: 8}\n")
    trained = []

    def train(config, **_):
        trained.append(config)
        raise UserError("enough")

    monkeypatch.setattr("genimg_fast.training.train", train)
    argv = ["train", "conv_vae", "--data", "digits", "--out", str(tmp_path / "run"), "--config", str(file)]
    assert cli.main([*argv, "--epochs", "3", "--model-arg", "latent=5"]) == 2
    (config,) = trained
    assert (config.epochs, config.batch_size, config.grad_accumulation) == (3, 16, 1)
    assert config.model_args == {"width": 4, "latent": 5}


@pytest.mark.parametrize(
    ("content", "argv"),
    [
        ("model: conv_vae\ndata: digits\nout: {out}\n", []),
        ("model: dcgan\ndata: photos\nout: elsewhere\n", ["conv_vae", "--data", "digits", "--out", "{out}"]),
    ],
)
def test_the_file_may_hold_all_there_is(tmp_path, content, argv, capsys):
    out = str(tmp_path / "run")
    file = tmp_path / "settings.yaml"
    settings = "image_size: 32\nmax_steps: 1\nmodel_args: {width: 4, latent: 8}\nbatch_size: 8\n"
    file.write_text(content.replace("{out}", out) + settings)
    argv = [argument.replace("{out}", out) for argument in argv]
    assert cli.main(["train", *argv, "--config", str(file), "--quiet"]) == 0
    assert f"weights in {out}/checkpoints" in capsys.readouterr().out
    assert load_model(out).name == "conv_vae"


@pytest.mark.parametrize("text", ["null", "none"])
def test_what_may_be_null_may_be_given_so(tmp_path, text):
    argv = ["train", "conv_vae", *TRAIN, *SHORT, "--out", str(tmp_path), "--ema-decay", text, "--grad-clip", text]
    assert cli.main(argv) == 0
    settings = json.loads((tmp_path / "config.json").read_text())["train"]
    assert (settings["ema_decay"], settings["grad_clip"]) == (None, None)


def test_every_flag_is_a_setting_and_its_default_is_told_truly():
    settings = TrainConfig("conv_vae", "digits", "out")
    (subparsers,) = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    flags = [a for a in subparsers.choices["train"]._actions if a.dest not in {*train_command._NOT_SETTINGS, "help"}]
    for flag in flags:
        default = getattr(settings, flag.dest)
        told = flag.help.partition("(default: ")[2].removesuffix(")")
        if told and default is not None:
            assert told == str(default), flag.dest


def test_a_sample_depends_on_the_seed_alone(run_of, tmp_path):
    def sample(model, seed):
        out = tmp_path / "grid.png"
        assert (
            cli.main(["sample", str(run_of(model)), "--n", "6", "--columns", "3", "--seed", seed, "--out", str(out)])
            == 0
        )
        return np.asarray(Image.open(out))

    for model in ("conv_vae", "dcgan"):
        grid = sample(model, "1")
        assert grid.shape == (2 * 34 + 2, 3 * 34 + 2)
        np.testing.assert_array_equal(grid, sample(model, "1"))
        assert not np.array_equal(grid, sample(model, "2"))


def test_sampling_in_batches_gives_the_number_asked_for(run_of, tmp_path, monkeypatch):
    monkeypatch.setattr(_common, "BATCH", 4)
    out = tmp_path / "grid.png"
    assert cli.main(["sample", str(run_of("dcgan")), "--n", "9", "--columns", "9", "--out", str(out)]) == 0
    assert Image.open(out).size == (9 * 34 + 2, 34 + 2)


@pytest.mark.parametrize(
    "argv",
    [["interpolate", "--rows", "3", "--steps", "3"], ["reconstruct", "--data", "digits", "--n", "9", "--columns", "4"]],
    ids=lambda argv: argv[0],
)
def test_batches_make_the_picture_that_one_makes(run_of, tmp_path, monkeypatch, argv):
    command, *options = argv
    out = tmp_path / "grid.png"
    pictures = []
    for batch in (4, 256):
        monkeypatch.setattr(_common, "BATCH", batch)
        assert cli.main([command, str(run_of("conv_vae")), *options, "--out", str(out)]) == 0
        pictures.append(np.asarray(Image.open(out)).astype(int))
    assert abs(pictures[0] - pictures[1]).max() <= 1  # a rounding


MANY = [
    (["sample", "--n", "58000"], "--n is 58000; allowed: at most 57840, which make a picture of 67108864 pixels"),
    (["sample", "--n", "999999999", "--columns", "1"], "--n is 999999999; allowed: at most 54827, "),
    (["interpolate", "--rows", "99999999"], "--rows times --steps is 999999990; allowed: at most 57710, "),
    (["interpolate", "--steps", "99999999"], "--rows times --steps is 599999994; allowed: at most 54827, "),
]


@pytest.mark.parametrize(("argv", "message"), MANY)
def test_more_images_than_make_a_picture_are_refused_at_once(run_of, tmp_path, capfd, argv, message):
    command, *options = argv
    run = run_of("conv_vae")
    capfd.readouterr()
    assert cli.main([command, str(run), *options, "--out", str(tmp_path / "new" / "x.png")]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"genimg-fast {command}: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_reconstruct_counts_what_the_data_set_has(run_of, tmp_path, capfd, monkeypatch):
    argv = ["reconstruct", str(run_of("conv_vae")), "--data", "digits", "--out", str(tmp_path / "x.png")]
    assert cli.main([*argv, "--n", "999999999", "--columns", "999999999"]) == 0
    monkeypatch.setattr("genimg_fast.data.grid.MAX_PIXELS", 170 * 170)
    capfd.readouterr()
    assert cli.main([*argv, "--n", "999999999"]) == 2
    assert "--n is 355; allowed: at most 12, " in capfd.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [["sample"], ["interpolate"], ["reconstruct", "--data", "digits"]],
    ids=lambda argv: argv[0],
)
def test_a_bar_tells_of_what_takes_long(run_of, tmp_path, capfd, monkeypatch, argv):
    command, *options = argv
    argv = [command, str(run_of("conv_vae")), *options, "--out", str(tmp_path / "x.png")]
    original = models.VAE.latent_to_images
    monkeypatch.setattr(_common, "BATCH", 16)
    capfd.readouterr()
    assert cli.main(argv) == 0
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(models.VAE, "latent_to_images", lambda *args: time.sleep(0.7) or original(*args))
    assert cli.main(argv) == 0
    assert "img/s" in capfd.readouterr().err


def test_reconstruct_puts_originals_above_reconstructions(run_of, tmp_path):
    out = tmp_path / "grid.png"
    argv = ["reconstruct", str(run_of("conv_vae")), "--data", "digits", "--n", "5", "--columns", "3", "--out", str(out)]
    assert cli.main(argv) == 0
    grid = np.asarray(Image.open(out))
    assert grid.shape == (4 * 34 + 2, 3 * 34 + 2)
    test_images = open_dataset("digits", split="test", image_size=32, channels=1)
    first_row = to_grid(torch.stack([test_images[i] for i in range(3)]), columns=3)
    np.testing.assert_array_equal(grid[:36], first_row)
    assert not np.array_equal(grid[34:70], first_row)


def test_interleave_fills_up_the_last_row():
    originals = torch.arange(1.0, 4).view(3, 1, 1, 1)
    rows = interleave(originals, -originals, columns=2).flatten().tolist()
    assert rows == [1, 2, -1, -2, 3, 0, -3, 0]


def test_reconstruct_refuses_a_gan(run_of, tmp_path, capsys):
    run = run_of("dcgan")
    assert cli.main(["reconstruct", str(run), "--data", "digits", "--out", str(tmp_path / "x.png")]) == 2
    assert capsys.readouterr().err == (
        f"genimg-fast reconstruct: {run} holds dcgan, a GAN: it has no encoder, so nothing to reconstruct with\n"
    )


@pytest.mark.parametrize("model", ["conv_vae", "dcgan"])
def test_interpolate(run_of, tmp_path, model):
    out = tmp_path / "grid.png"
    assert cli.main(["interpolate", str(run_of(model)), "--steps", "5", "--rows", "2", "--out", str(out)]) == 0
    assert Image.open(out).size == (5 * 34 + 2, 2 * 34 + 2)


def test_slerp_stays_on_the_sphere():
    start, end = torch.tensor([3.0, 0, 0]), torch.tensor([0, 3.0, 0])
    path = slerp(start, end, 5)
    torch.testing.assert_close(path.norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(path[[0, 2, 4]], torch.stack([start, (start + end) / 2**0.5, end]))


def test_slerp_between_parallel_vectors_is_the_straight_line():
    start = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(slerp(start, 3 * start, 3), torch.stack([start, 2 * start, 3 * start]))


@pytest.mark.parametrize(("format", "name"), [("onnx", "new/dcgan.onnx"), ("torch-export", "dcgan.pt2")])
def test_export(run_of, tmp_path, format, name, capfd):
    out = tmp_path / name
    run = run_of("dcgan")
    capfd.readouterr()
    assert cli.main(["export", str(run), "--format", format, "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
    printed = capfd.readouterr()
    used = f"{run}/checkpoints/best.safetensors, step 2"
    assert (
        printed.out
        == f"dcgan ({used}) in {out}: latents (N, 8, 1, 1) from N(0, 1) to images (N, 1, 32, 32) in [0, 1]\n"
    )
    assert printed.err == ""


@pytest.mark.parametrize("argv", [["sample"], ["interpolate"], ["reconstruct", "--data", "digits"]])
def test_the_weights_that_were_used_are_told(run_of, tmp_path, capsys, argv):
    command, *options = argv
    run, out = run_of("conv_vae"), str(tmp_path / "x.png")
    load_model(run).save_pretrained(tmp_path / "shared")
    capsys.readouterr()
    for source, used in (
        (run, "checkpoints/best.safetensors, step 2"),
        (run / "checkpoints" / "last.safetensors", ", step 2"),
        (tmp_path / "shared", "model.safetensors"),
    ):
        assert cli.main([command, str(source), *options, "--out", out]) == 0
        told = f"{source}{used}" if used.startswith(",") else f"{source}/{used}"
        assert f" conv_vae ({told}) " in capsys.readouterr().out


def test_a_folder_of_save_pretrained_serves_as_a_run(run_of, tmp_path):
    load_model(run_of("dcgan")).half().save_pretrained(tmp_path / "shared")
    out = tmp_path / "dcgan.pt2"
    assert cli.main(["export", str(tmp_path / "shared"), "--format", "torch-export", "--out", str(out)]) == 0
    assert torch.export.load(out).module()(torch.zeros(3, 8, 1, 1)).shape == (3, 1, 32, 32)


def test_models_lists_all(capsys):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == models.list_models()
    count = sum(p.numel() for p in models.create("dcgan").parameters())
    assert f"{count / 1e6:.2f} M" in next(line for line in lines if line.startswith("dcgan"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["train", "nope", "--data", "digits", "--out", "{tmp}/run"],
            "train: model 'nope': model must be one of 'vae'",
        ),
        (
            ["train", "vae", "--data", "nowhere", "--out", "{tmp}/run"],
            "neither a data set (digits, photos) nor an existing",
        ),
        (
            ["train", "vae", "--data", "digits", "--out", "{tmp}/run", "--epochs", "0"],
            "train: epochs is 0; allowed: at least 1",
        ),
        (
            ["train", "vae", "--data", "digits", "--out", "{tmp}/run", "--config", "{tmp}/no.yaml"],
            "cannot read {tmp}/no.yaml",
        ),
        (["train", "vae", "--data", "digits", "--out", ""], "train: out is ''; allowed: the path of a folder"),
        (["train", "vae", "--data", "digits"], "train: the command line, without --config: out must be given"),
        (["train", "vae", "--data", "digits", "--out", "x", "--lr", "x"], "train: lr is 'x'; allowed: a number"),
        (["train", "vae", "--data", "digits", "--out", "x", "--max", "4"], "train: unknown arguments: --max 4; see "),
        (["train", "vae", "--data", "digits", "--out", "{tmp}/run", "--resume"], "{tmp}/run holds no run to resume"),
        (
            ["train", "--out", "{tmp}/run", "--resume"],
            "train: there is no {tmp}/run/config.json with the settings of a run to resume; if it was lost, give model and",
        ),
        (["sample", "{tmp}/nothing", "--out", "{tmp}/x.png"], "{tmp}/nothing"),
        (
            ["export", "{tmp}", "--format", "onnx", "--out", "{tmp}/x.pt2"],
            "export: --out must end in .onnx for --format onnx",
        ),
        (["interpolate", "{tmp}/nothing", "--out", "{tmp}/x.png"], "{tmp}/nothing"),
        (["sample", "{tmp}", "--out", "{tmp}/x.png", "--device", "cuda:99"], "sample: --device 'cuda:99': torch sees "),
        (
            ["sample", "{tmp}", "--out", "{tmp}/x.png", "--device", "gpu"],
            "sample: --device 'gpu' is no device; use cpu, cuda",
        ),
    ],
)
def test_bad_input_is_one_line(argv, message, tmp_path, capsys):
    assert cli.main([argument.replace("{tmp}", str(tmp_path)) for argument in argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message.replace("{tmp}", str(tmp_path)) in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "run", "--out", "x.jpg"], "argument --out: must end in .png, got 'x.jpg'"),
        (["sample", "run", "--out", "x.png", "--n", "0"], "argument --n: must be at least 1, got 0"),
        (["sample", "run", "--out", "x.png", "--seed", "-1"], "argument --seed: must be from 0 to 2^63 - 1, got -1"),
        (["demo", "--minutes", "nan"], "argument --minutes: must be 0 or more and finite, got nan"),
        (["sample", "run", "--out", "x.png", "--n", "x"], "argument --n: must be a whole number, got 'x'"),
        (["sample", "run", "--out", "x.png", "--seed", "x"], "argument --seed: must be a whole number, got 'x'"),
        (["bench", "--seconds", "x"], "argument --seconds: must be a number, got 'x'"),
        (["sample", "run"], "required: --out"),
        (
            ["train", "vae", "--data", "x", "--out", "y", "--model-arg", "width"],
            "--model-arg: expected KEY=VALUE, got 'width'",
        ),
    ],
)
def test_bad_arguments_are_usage_errors(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(argv)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"genimg-fast {argv[0]}: .*; see genimg-fast {argv[0]} --help\n", error)
    assert message in error
