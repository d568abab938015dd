# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import os
import pickle
import zipfile

import pytest
import safetensors
import safetensors.torch
import torch

from genimg_fast import models
from genimg_fast.training import UserError, load_model
from genimg_fast.training.checkpoint import (
    claim_folder,
    find_weights,
    load_resume,
    restoring,
    save_resume,
    save_weights,
    step_of_weights,
    write_atomically,
)


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture
def folder(tmp_path):
    claim_folder(tmp_path, resume=False)
    return tmp_path / "checkpoints"


def save(folder, step):
    save_resume(folder, {"step": step, "weights": torch.full((1000,), float(step))})


def test_last_and_previous_are_kept(folder):
    assert load_resume(folder) is None
    for step in (1, 2, 3):
        save(folder, step)
    assert load_resume(folder)["step"] == 3
    (folder / "last.pt").unlink()  # killed between the two renames
    assert load_resume(folder)["step"] == 2
    assert sorted(p.name for p in folder.iterdir()) == ["previous.pt"]


def truncate(file):
    file.write_bytes(file.read_bytes()[:-200])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    at = content.index(torch.full((8,), 2.0).numpy().tobytes()) + 100
    content[at] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


def with_step(step):
    def damage(file):
        torch.save({**torch.load(file), "step": step}, file)

    return damage


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, empty, with_step(-1), with_step("many"), with_step(float("inf"))],
    ids=["truncated", "a bit", "empty", "step -1", "step many", "step inf"],
)
def test_damage_is_noticed_and_the_previous_one_serves(folder, damage):
    save(folder, 1)
    save(folder, 2)
    damage(folder / "last.pt")
    with pytest.raises(UserError, match=r"last.pt is damaged or is not a resume file \(.*\); restore it.*"):
        load_resume(folder)
    with pytest.warns(UserWarning, match=r"last.pt is damaged .*; continuing from .*previous.pt"):
        claim_folder(folder.parent, resume=True)
    assert load_resume(folder)["step"] == 1
    save(folder, 3)  # must not have pushed the damaged file into the place of the good one
    (folder / "last.pt").unlink()
    assert load_resume(folder) is None or load_resume(folder)["step"] == 1


def test_the_file_that_was_read_is_the_one_that_is_named(folder):
    save(folder, 1)
    (folder / "last.pt").rename(folder / "previous.pt")
    state = load_resume(folder)
    with pytest.raises(UserError, match=r"previous.pt is damaged .* \(no 'model' in it\)"), restoring(folder):
        state["model"]


def test_nothing_in_a_resume_file_is_executed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save({"format": "genimg_fast resume file 1", "step": Explosive()}, folder / "last.pt")
    with pytest.raises(UserError, match=r"last.pt is refused: it holds more than tensors and plain values.*delete it$"):
        load_resume(folder)
    with zipfile.ZipFile(folder / "last.pt", "w") as archive:  # as torch.save writes it, but by hand
        archive.writestr("archive/data.pkl", pickle.dumps(Explosive(), protocol=2))
        archive.writestr("archive/version", "3")
    with pytest.raises(UserError):
        load_resume(folder)
    (folder / "last.pt").write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(UserError):
        load_resume(folder)
    assert not (folder / "exploded").exists()


def test_a_foreign_file_is_not_taken_for_a_resume_file(folder):
    torch.save({"step": 1}, folder / "last.pt")
    with pytest.raises(UserError, match=r"not a resume file \(not written by this version\)"):
        load_resume(folder)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a)))
    write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_other_users_may_read_what_is_written(tmp_path):
    before = os.umask(0o022)
    write_atomically(tmp_path / "file", lambda file: file.write(b""))
    os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_leftovers_of_a_killed_write_are_removed(folder):
    save(folder, 1)
    (folder / ".last.pt.abc.tmp").write_bytes(b"half")
    claim_folder(folder.parent, resume=True)
    assert [p.name for p in folder.iterdir()] == ["last.pt"]


def test_load_model_gives_back_the_model(tmp_path, folder):
    model = models.create("vae", image_size=8, hidden=5, latent=3)
    save_weights(folder / "last.safetensors", model, step=7)
    for path in (tmp_path, folder / "last.safetensors", str(folder / "last.safetensors")):
        loaded = load_model(path)
        assert type(loaded) is type(model)
        assert loaded.config == model.config
        assert not loaded.training
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        next(model.parameters()).zero_()
    save_weights(folder / "best.safetensors", model, step=5)
    assert not next(load_model(tmp_path).parameters()).any()  # the best one comes first


def test_which_weights_are_loaded_can_be_told(tmp_path, folder):
    model = models.create("vae", image_size=8, hidden=5, latent=3)
    last, best = folder / "last.safetensors", folder / "best.safetensors"
    save_weights(last, model, step=7)
    assert (find_weights(tmp_path), find_weights(last), step_of_weights(last)) == (last, last, 7)
    save_weights(best, model, step=5)
    assert (find_weights(tmp_path), step_of_weights(best)) == (best, 5)
    model.save_pretrained(tmp_path / "shared")
    shared = find_weights(tmp_path / "shared")
    assert (shared, step_of_weights(shared)) == (tmp_path / "shared" / "model.safetensors", None)


def test_load_model_errors(tmp_path):
    with pytest.raises(UserError, match=r"holds no trained model: .*best.safetensors and last.safetensors are missing"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*none.safetensors: No such file"):
        load_model(tmp_path / "none.safetensors")
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match=r"x.safetensors is damaged or is not a safetensors file"):
        load_model(file)
    weights = {"w": torch.zeros(1)}
    safetensors.torch.save_file(weights, file)
    with pytest.raises(UserError, match=r"does not say which model it holds \(no 'model' in its metadata\)"):
        load_model(file)
    for name, config in (("os.system", "{}"), ("vae", '{"nonsense": 1}'), ("vae", "{}"), ("vae", "{"), ("vae", "3")):
        safetensors.torch.save_file(weights, file, metadata={"model": name, "config": config})
        with pytest.raises(UserError, match=r"x.safetensors does not fit the model it names: [^\n]+\Z"):
            load_model(file)


def test_metadata_is_readable_by_other_tools(folder):
    model = models.create("vae", image_size=8)
    save_weights(folder / "last.safetensors", model, step=7)
    with safetensors.safe_open(folder / "last.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(model.state_dict())
    assert metadata["format"] == "pt"
    assert metadata["model"] == "vae"
    assert metadata["step"] == "7"
    assert json.loads(metadata["config"]) == model.config
