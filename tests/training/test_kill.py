# SPDX-License-Identifier: MIT
"""kill -9 at a moment nobody chose, again and again: the run must end as if nothing had happened."""

from __future__ import annotations

import random
import signal
import time

import pytest

from genimg_fast.training import train
from tests.training._runs import GAN, VAE, assert_same_end, config, resume_state, start

STEPS = 120
SETTINGS = {"max_steps": STEPS, "checkpoint_every": 3, "validate_every": 20, "sample_every": 40, "log_every": 5}

RUN = f"""
import sys
from genimg_fast.training import train
from tests.training._runs import GAN, VAE, config
train(config(sys.argv[1], {{"vae": VAE, "gan": GAN}}[sys.argv[2]], **{SETTINGS!r}), resume=sys.argv[3] == "True", progress=False)
"""


def kill_once(out, kind, delay, *, resume):
    """Starts or resumes the run, and kills it `delay` seconds after it wrote a checkpoint.  False if it ended before."""
    last = out / "checkpoints" / "last.pt"
    before = last.stat().st_mtime_ns if last.exists() else None
    process = start(RUN, out, kind, resume)
    while process.poll() is None and not (last.exists() and last.stat().st_mtime_ns != before):
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 0), err
    return process.returncode != 0


def check(tmp_path, kind, settings, kills, seed):
    draw = random.Random(seed)
    killed = 0
    for n in range(kills):
        # Short beside the run: it takes a second or more after its first checkpoint.
        killed += kill_once(tmp_path / "killed", kind, draw.uniform(0, 0.2), resume=n > 0)
        assert resume_state(tmp_path / "killed")["step"] <= STEPS
    assert killed > 0
    train(config(tmp_path / "killed", settings, **SETTINGS), resume=True, progress=False)
    train(config(tmp_path / "whole", settings, **SETTINGS), progress=False)
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_killed_once(tmp_path):
    check(tmp_path, "vae", VAE, kills=1, seed=time.time_ns())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [("vae", VAE), ("gan", GAN)])
def test_killed_again_and_again(tmp_path, kind, settings):
    check(tmp_path, kind, settings, kills=8, seed=time.time_ns())
