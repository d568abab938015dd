# SPDX-License-Identifier: MIT
"""Tiny runs for the tests: real models on real digits of 8x8 pixels, a few milliseconds a step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import safetensors
import torch

from genimg_fast.training import TrainConfig, checkpoint

ROOT = Path(__file__).resolve().parents[2]

VAE = {"model": "vae", "model_args": {"hidden": 16, "latent": 4}}
GAN = {"model": "dense_gan", "model_args": {"hidden": 8, "latent": 4}}  # has batch norm and dropout


def config(out: Path, kind: dict[str, Any] = VAE, **overrides: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "data": "digits",
        "image_size": 8,
        "batch_size": 8,
        "max_steps": 6,
        "log_every": 1,
        "sample_every": 0,
        "validate_every": 0,
        "checkpoint_every": 0,
    }
    return TrainConfig(out=str(out), **{**settings, **kind, **overrides})


def resume_state(out: Path) -> dict[str, Any]:
    state = checkpoint.load_resume(out / "checkpoints")
    assert state is not None
    return state


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Equal to the last bit, at every depth."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def exported(file: Path) -> dict[str, Any]:
    with safetensors.safe_open(file, framework="pt") as opened:
        return {**opened.metadata(), **{name: opened.get_tensor(name) for name in opened.keys()}}  # noqa: SIM118


def assert_same_end(a: Path, b: Path) -> None:
    """Two runs ended alike: weights, averages, optimizers, random numbers, and what was exported."""
    first, second = resume_state(a), resume_state(b)
    first["config"], second["config"] = ({**s["config"], "out": ""} for s in (first, second))
    assert_same(first, second)
    for name in ("last.safetensors", "best.safetensors"):
        assert_same(*(exported(out / "checkpoints" / name) for out in (a, b)), name)


_PATH = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []


def start(code: str, *arguments: object, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
    """Runs `code` in a Python process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, *launcher, *(["-c", code] if not launcher else []), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_PATH]), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
