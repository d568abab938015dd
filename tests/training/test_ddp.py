# SPDX-License-Identifier: MIT
"""Two processes under torchrun, with gloo on the CPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genimg_fast.training import train
from tests.training._runs import GAN, VAE, assert_same, config, resume_state, start

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}  # two processes do not share a GPU under NCCL
SCRIPT = """
import os, sys
from pathlib import Path
import torch
from genimg_fast.training import loop
from tests.training._runs import GAN, VAE, config

rank = int(os.environ["RANK"])
settings = dict(max_steps=4, checkpoint_every=2, validate_every=2, sample_every=2, grad_accumulation=2)
for kind in (VAE, GAN):
    out = Path(sys.argv[1]) / kind["model"]
    # Each process has an output folder of its own, so that what the second one writes would show.
    run = loop._Run(config(out / f"rank{rank}", kind, **settings), resume=False, progress=False)
    result = run.train()
    weights = {name: p.detach() for name, p in run.model.named_parameters()}
    torch.save({"weights": weights, "best": result.best_metric, "steps": result.steps}, out.with_suffix(f".end{rank}"))
    run.close()
torch.distributed.destroy_process_group()
"""


def test_both_processes_end_with_the_same_weights_and_the_first_one_writes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script))
    process = start("", tmp_path, launcher=launcher, **ON_CPU)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for kind in (VAE, GAN):
        out = tmp_path / kind["model"]
        first, second = (torch.load(out.with_suffix(f".end{rank}"), weights_only=True) for rank in (0, 1))
        assert_same(first, second)
        assert first["steps"] == 4
        assert first["best"] is not None
        assert [p.name for p in out.iterdir()] == ["rank0"]
        state = resume_state(out / "rank0")
        assert state["images_per_step"] == 2 * 2 * 8
        assert not torch.equal(state["rng"][0]["torch"], state["rng"][1]["torch"])
        # The exchanged gradients are those of both processes' images, not only of the first one's.
        train(config(tmp_path / "alone", kind, max_steps=4, grad_accumulation=2), progress=False)
        alone = resume_state(tmp_path / "alone")["model"]
        assert any(not torch.equal(alone[name], weight) for name, weight in first["weights"].items())
        shutil.rmtree(tmp_path / "alone")


BIN = Path(sys.executable).parent
TRAIN = [
    "train",
    "dense_gan",
    "--data",
    "digits",
    "--image-size",
    "8",
    "--batch-size",
    "8",
    "--log-every",
    "1",
    "--quiet",
]
TRAIN += ["--model-arg", "hidden=8", "--model-arg", "latent=4"]


def train_on(processes: int, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What README tells: torchrun with the command `genimg-fast`."""
    command = [BIN / "torchrun", "--standalone", f"--nproc-per-node={processes}", BIN / "genimg-fast"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **ON_CPU}
    return subprocess.run(
        [*command, *TRAIN, "--out", out, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def check_run(out: Path, *, steps: int, images_per_step: int, processes: int) -> None:
    state = resume_state(out)
    assert (state["step"], state["images_per_step"], len(state["rng"])) == (steps, images_per_step, processes)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["split"] == "train"] == list(range(1, steps + 1))
    assert all(math.isfinite(value) for r in records for value in r.values() if isinstance(value, float))
    assert json.loads((out / "config.json").read_text())["processes"] == processes


def test_the_command_under_torchrun_and_resumed_alone(tmp_path):
    done = train_on(2, tmp_path / "run", "--max-steps", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps, ") == 1  # the first process speaks
    check_run(tmp_path / "run", steps=3, images_per_step=16, processes=2)
    alone = config(tmp_path / "run", GAN, max_steps=5)
    train(alone, resume=True, progress=False)
    check_run(tmp_path / "run", steps=5, images_per_step=16, processes=1)


@pytest.mark.slow
def test_resumed_on_more_processes_and_fewer_and_too_many(tmp_path):
    out = tmp_path / "run"
    assert train_on(1, out, "--max-steps", "2").returncode == 0
    for processes, steps in ((2, 4), (4, 6), (2, 8)):
        done = train_on(processes, out, "--max-steps", str(steps), "--resume")
        assert done.returncode == 0, done.stderr
        check_run(out, steps=steps, images_per_step=8, processes=processes)
    refused = train_on(3, out, "--max-steps", "9", "--resume")
    assert refused.returncode != 0
    assert "genimg-fast train: the run takes 8 images a step, which 3 processes cannot share equally" in refused.stderr
    assert "genimg_fast/cli" not in refused.stderr  # no traceback of ours; torchrun's own report names no file of it
    assert resume_state(out)["step"] == 8
