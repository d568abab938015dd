# SPDX-License-Identifier: MIT
"""`genimg-fast demo`"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genimg_fast.cli import _common

if TYPE_CHECKING:
    import torch

    from genimg_fast.training import TrainResult

DATA = "digits"
IMAGES: dict[str, Any] = {"image_size": 32, "channels": 1}


class Run(NamedTuple):
    settings: dict[str, Any]
    """Of TrainConfig."""
    share: float
    """Of the time that is left, for the steps alone."""
    fewest_steps: int
    """Whatever the time: fewer leave nothing to look at."""
    most_steps: int
    """After which more time changes little."""


RUNS = {
    "conv_vae": Run(
        {"model_args": {"width": 16, "latent": 16}, "lr": 2e-3, "lr_schedule": "cosine", "ema_decay": 0.99},
        0.3,
        300,
        1500,
    ),
    # A slower discriminator (Heusel et al. 2017): at equal rates it wins at once on so few images, and training stalls.
    "dcgan": Run(
        {
            "model_args": {"width": 16, "latent": 64},
            "lr": 1e-3,
            "discriminator_lr": 2e-4,
            "lr_schedule": "cosine",
            "ema_decay": 0.99,
        },
        0.8,
        700,
        2500,
    ),
}
BATCH = 64
MEASURE_SECONDS = 4.0
MARKER = ".genimg-fast-demo"


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "demo",
        "Train a VAE and a DCGAN on handwritten digits in minutes, and measure what the fused kernels gain.",
        "genimg-fast demo --out runs/demo --minutes 4",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="for all that it makes (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=_common.duration,
        metavar="X",
        default=4.0,
        help="about how long to take, all included (default: %(default)s)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    import torch

    from genimg_fast.benchmark import machine

    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _claim(args.out)
    described = machine.describe(torch.get_num_threads())
    print(f"{machine.in_words(described)}\n\nFused against eager PyTorch, each in a process of its own, taking turns:")
    speeds = _measure(device, torch.get_num_threads())

    results = {}
    for name, planned in RUNS.items():
        seconds = planned.share * (deadline - time.monotonic())
        affordable = int(1e3 * seconds / speeds[name]["runtimes"]["ours"]["milliseconds"]["median"])
        results[name] = _train(
            name, planned, args.out / name, max(planned.fewest_steps, min(affordable, planned.most_steps))
        )
    drawn = _pictures(args.out, results)
    healthy, parity = _parity_line(device)
    rows = [("parity with the reference", parity), *_elbo_lines(args.out / "conv_vae")]
    rows += [(f"{name}, training step", _speed(speeds[name])) for name in RUNS]
    print(f"\n{_table(rows)}\n\nPictures, checkpoints and logs are in {args.out}.")
    print(f"Curves: tensorboard --logdir {args.out}")
    return 0 if healthy and drawn else 1


def _claim(out: Path) -> None:
    """Makes the folder, without what an earlier demo left there.

    Raises:
        CommandError: the folder holds something that no demo made.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise _common.CommandError(f"{out} is not empty and not of an earlier demo; choose another folder with --out")
    for name in RUNS:
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _measure(device: torch.device, threads: int) -> dict[str, dict[str, Any]]:
    from genimg_fast.benchmark import models, suite
    from genimg_fast.benchmark.workloads import Workload

    steps: dict[str, Callable[..., Workload]] = {"conv_vae": models.VAEStep, "dcgan": models.GANStep}
    results = {}
    with suite.Workers(threads, str(device)) as workers:
        for name, planned in RUNS.items():
            step = steps[name](BATCH, **IMAGES, **planned.settings["model_args"])
            row = suite.Row(f"{name}, training step", step, ("eager",))
            results[name] = suite.measure_row(row, workers, MEASURE_SECONDS)
            print(f"{row.name}\n{suite.row_in_words(results[name])}", flush=True)
            if results[name]["best"] is None:
                raise _common.CommandError(f"{row.name} was not measured: {results[name]['failed']}")
    return results


def _train(name: str, planned: Run, out: Path, steps: int) -> TrainResult:
    from genimg_fast.training import TrainConfig, train

    print(f"\nTraining {name} for {steps} steps of {BATCH} images")
    config = TrainConfig(
        model=name, data=DATA, out=str(out), **IMAGES, **planned.settings, max_steps=steps, batch_size=BATCH,
        log_every=max(1, steps // 200), sample_every=max(1, steps // 5), checkpoint_every=0, validate_every=max(1, steps // 5),
    )  # fmt: skip
    return train(config)


def _pictures(out: Path, results: dict[str, TrainResult]) -> bool:
    """Whether all could be made; what could not has been told."""
    from genimg_fast.cli import main

    commands = [["reconstruct", "conv_vae", "--data", DATA, "--out", "reconstructions.png"]]
    for name in RUNS:
        commands.append(["sample", name, "--n", "64", "--out", f"{name}_samples.png"])
        commands.append(["interpolate", name, "--rows", "6", "--out", f"{name}_interpolation.png"])
    codes = [
        main([command, str(out / run), *options, str(out / picture)]) for command, run, *options, picture in commands
    ]
    _draw_losses({name: result.history for name, result in results.items()}, out / "losses.png")
    return not any(codes)


def _draw_losses(histories: dict[str, list[dict]], path: Path) -> None:
    """One panel a model, one line a loss."""
    from matplotlib.figure import Figure

    from genimg_fast._files import write_atomically

    figure = Figure(figsize=(5.5 * len(histories), 3.6), layout="constrained")
    for axes, (name, history) in zip(figure.subplots(1, len(histories)), histories.items(), strict=True):
        train = [record for record in history if record["split"] == "train"]
        for loss in ("loss", "reconstruction", "kl", "discriminator_loss", "generator_loss"):
            points = [(record["step"], record[loss]) for record in train if loss in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=loss.replace("_", " "), linewidth=1)
        axes.set(title=name, xlabel="step", ylabel="loss (nats an image)" if name == "conv_vae" else "loss")
        axes.legend()
    write_atomically(path, partial(figure.savefig, format="png", dpi=120))


def _parity_line(device: torch.device) -> tuple[bool, str]:
    from genimg_fast import _extension, _parity

    reason = _extension.why_not_on(device)
    if reason:
        return True, f"not checked, no kernels: {reason}"
    checks = {op: _parity.check(op, device) for op in _parity.CASES}
    failed = [op for op, parity in checks.items() if not parity.ok]
    largest = max(parity.difference for parity in checks.values())
    if failed:
        return False, f"FAIL: {', '.join(failed)}"
    return True, f"OK, {len(checks)} ops forward and backward; largest relative difference {largest:.1e}"


def _elbo_lines(run: Path) -> list[tuple[str, str]]:
    """The test ELBO of the trained VAE, and that of a model that predicts the mean training image whatever it sees."""
    import torch

    from genimg_fast import functional
    from genimg_fast.data import open_dataset
    from genimg_fast.models import VAE
    from genimg_fast.training import load_model, metrics

    train, test = (open_dataset(DATA, split=split, **IMAGES) for split in ("train", "test"))
    model = load_model(run)
    assert isinstance(model, VAE)
    elbo = metrics.elbo(model, test, batch_size=BATCH, seed=0)["elbo"]
    images = torch.stack([test[i] for i in range(len(test))])
    mean = torch.stack([train[i] for i in range(len(train))]).mean(0)
    # No pixel may be certain, which could cost any number of nats.  There is no latent, so the KL term is zero.
    predictions = mean.clamp(1e-3, 1 - 1e-3).expand_as(images)
    mean_elbo = -functional.bce_loss(predictions, images, reduction="sum").item() / len(images)
    return [
        ("test ELBO of the VAE", f"{elbo:.1f} nats an image"),
        ("test ELBO of the mean image", f"{mean_elbo:.1f} nats an image"),
    ]


def _speed(result: dict) -> str:
    ratio = result["ratio"]
    rate = {name: BATCH / r["milliseconds"]["median"] * 1e3 for name, r in result["runtimes"].items()}
    return (
        f"{rate['ours']:.0f} images/s fused, {rate['eager']:.0f} eager: "
        f"{ratio['median']:.2f} times as fast ({ratio['low']:.2f} to {ratio['high']:.2f})"
    )


def _table(rows: list[tuple[str, str]]) -> str:
    from genimg_fast._table import format_table

    return format_table(("demo", "result"), rows)
