# SPDX-License-Identifier: MIT
"""Two processes under torchrun, with gloo on the CPU."""

from __future__ import annotations

import shutil

import torch

from genimg_fast.training import train
from tests.training._runs import GAN, VAE, assert_same, config, resume_state, start

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
    process = start("", tmp_path, launcher=launcher)
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
        assert state["processes"] == 2
        assert not torch.equal(state["rng"][0]["torch"], state["rng"][1]["torch"])
        # The exchanged gradients are those of both processes' images, not only of the first one's.
        train(config(tmp_path / "alone", kind, max_steps=4, grad_accumulation=2), progress=False)
        alone = resume_state(tmp_path / "alone")["model"]
        assert any(not torch.equal(alone[name], weight) for name, weight in first["weights"].items())
        shutil.rmtree(tmp_path / "alone")
