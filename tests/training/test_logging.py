# SPDX-License-Identifier: MIT
"""Weights & Biases: with a stand-in, which sees what it is told, and with the real thing where it is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from genimg_fast.training import UserError, train
from tests.training._runs import config


class FakeRun:
    def __init__(self, **settings):
        self.settings, self.logged, self.finished = settings, [], False
        self.id = settings["id"] or "an-id"

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that were begun with a stand-in for the package wandb."""
    runs = []

    def init(**settings):
        runs.append(FakeRun(**settings))
        return runs[-1]

    fake = SimpleNamespace(init=init, Image=lambda pixels: pixels, Settings=dict, __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return runs


def test_wandb_gets_the_same_numbers_offline(tmp_path, runs):
    result = train(config(tmp_path / "digits", max_steps=3, wandb=True), progress=False)
    (run,) = runs
    assert run.finished
    assert run.settings["mode"] == "offline"
    assert (run.settings["name"], run.settings["dir"]) == ("digits", str(tmp_path / "digits"))
    assert run.settings["config"]["train"]["max_steps"] == 3
    pictures = [values for _, values in run.logged if "samples" in values]
    assert pictures[0]["samples"][0].shape == (82, 82)
    told = [(step, values) for step, values in run.logged if "samples" not in values]
    assert told == [
        (r["step"], {f"{r['split']}/{name}": v for name, v in r.items() if name not in ("step", "split")})
        for r in result.history
    ]


def test_a_resumed_run_keeps_its_identity_and_the_user_may_go_online(tmp_path, runs, monkeypatch):
    train(config(tmp_path, max_steps=2, wandb=True), progress=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    train(config(tmp_path, max_steps=4, wandb=True), resume=True, progress=False)
    first, second = runs
    assert (first.settings["id"], second.settings["id"], second.settings["resume"]) == (None, "an-id", "allow")
    assert second.settings["mode"] == "online"
    assert [step for step, values in second.logged if "train/loss" in values] == [3, 4]


def test_without_wandb_nothing_is_begun(tmp_path, runs):
    train(config(tmp_path, max_steps=1), progress=False)
    assert not runs
    assert not (tmp_path / "wandb").exists()


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"\Awandb needs a further package: pip install 'genimg-fast\[wandb\]'\Z"):
        train(config(tmp_path / "run", wandb=True), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for steps in (2, 4):
        train(config(tmp_path, max_steps=steps, wandb=True), resume=steps == 4, progress=False)
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    identity = (tmp_path / "wandb" / "id").read_text()
    assert all(session.name.endswith(identity) and list(session.glob("*.wandb")) for session in sessions)
