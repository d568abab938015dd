# SPDX-License-Identifier: MIT
"""Two processes under torchrun, with gloo on the CPU."""

from __future__ import annotations

import pytest
import torch

from tests.training._runs import GAN, VAE, assert_same, resume_state, start

SCRIPT = '''
import os, sys
from pathlib import Path
import torch
from genimg_fast.training import loop, train
from tests.training._runs import GAN, VAE, config

out, kind = Path(sys.argv[1]), {"vae": VAE, "gan": GAN}[sys.argv[2]]
rank = int(os.environ["RANK"])
# Each process has an output folder of its own, so that what the second one writes shows.
settings = dict(max_steps=4, checkpoint_every=2, validate_every=2, sample_every=2, grad_accumulation=2)
run = loop._Run(config(out / f"rank{rank}", kind, **settings), resume=False, progress=False)
result = run.train()
torch.save(
    {"model": {n: p.detach() for n, p in run.model.named_parameters()}, "best": result.best_metric, "steps": result.steps},
    out / f"end{rank}.pt",
)
run.close()
torch.distributed.destroy_process_group()
'''


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_both_processes_end_with_the_same_weights_and_the_first_one_writes(tmp_path, kind):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script))
    process = start("", tmp_path, kind, launcher=launcher)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    first, second = (torch.load(tmp_path / f"end{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same(first, second)
    assert first["steps"] == 4
    assert first["best"] is not None
    assert not (tmp_path / "rank1").exists()
    state = resume_state(tmp_path / "rank0")
    assert state["processes"] == 2
    assert not torch.equal(state["rng"][0]["torch"], state["rng"][1]["torch"])
    assert {"vae": VAE, "gan": GAN}[kind]["model"] == state["config"]["model"]
