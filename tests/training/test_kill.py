# SPDX-License-Identifier: MIT
"""kill -9 at a moment nobody chose, thirty-one times in all: the run must end as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time

import pytest

from genimg_fast.training import train
from tests.training._runs import GAN, VAE, assert_same_end, config, resume_state, start

SETTINGS = {"checkpoint_every": 3, "validate_every": 20, "sample_every": 40, "log_every": 5}

RUN = f"""
import sys
from genimg_fast.training import train
from tests.training._runs import GAN, VAE, config
settings = dict(max_steps=1_000_000, **{SETTINGS!r})  # more than it is given time for
train(config(sys.argv[1], {{"vae": VAE, "gan": GAN}}[sys.argv[2]], **settings), resume=sys.argv[3] == "True", progress=False)
"""


def kill(out, kind, delay, *, resume):
    """Starts or resumes the run, and kills it `delay` seconds after it wrote a checkpoint."""
    last = out / "checkpoints" / "last.pt"
    before = last.stat().st_mtime_ns if last.exists() else None
    process = start(RUN, out, kind, resume)
    while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns != before):
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err


def check(tmp_path, kind, settings, kills, seed):
    print("seed", seed)  # shown where the test fails
    draw = random.Random(seed)
    reached = 0
    for n in range(kills):
        kill(tmp_path / "killed", kind, draw.uniform(0, 0.2), resume=n > 0)
        before, reached = reached, resume_state(tmp_path / "killed")["step"]
        assert reached > before  # the checkpoint that was seen before the kill is still there, or a later one
    settings = {**settings, **SETTINGS, "max_steps": reached + 7}
    train(config(tmp_path / "killed", settings), resume=True, progress=False)
    train(config(tmp_path / "whole", settings), progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_killed_once(tmp_path):
    check(tmp_path, "vae", VAE, kills=1, seed=time.time_ns())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [("vae", VAE), ("gan", GAN)])
def test_killed_again_and_again(tmp_path, kind, settings):
    check(tmp_path, kind, settings, kills=15, seed=time.time_ns())
