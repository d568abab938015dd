# SPDX-License-Identifier: MIT
"""save_pretrained, from_pretrained and the Hub, which a local folder stands in for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import huggingface_hub
import pytest
import safetensors.torch
import torch

import genimg_fast
from genimg_fast import models
from genimg_fast.models import DCGAN, ImageModel
from genimg_fast.training import load_model
from tests.models.test_models import model  # noqa: F401 (a fixture: every model, small)


def assert_same_model(a, b):
    assert type(a) is type(b)
    assert a.config == b.config
    assert list(a.state_dict()) == list(b.state_dict())
    torch.testing.assert_close(dict(a.state_dict()), dict(b.state_dict()), rtol=0, atol=0)


def test_every_model_comes_back(model, tmp_path):  # noqa: F811
    model.train()
    model.latent_to_images(torch.randn(4, *model.latent_shape)).sum().backward()  # running statistics worth keeping
    model.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["config.json", "model.safetensors"]
    again = ImageModel.from_pretrained(tmp_path / "new" / "folder")
    assert not again.training
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())
    assert_same_model(again, model)
    generators = (torch.Generator().manual_seed(0) for _ in range(2))
    assert torch.equal(again.sample(2, next(generators)), model.eval().sample(2, next(generators)))


def small() -> DCGAN:
    return models.create("dcgan", image_size=32, channels=1, width=2, latent=3)


def test_weights_keep_their_dtype_also_from_an_unfused_model(tmp_path):
    dcgan = genimg_fast.unfuse(small().half())
    dcgan.save_pretrained(tmp_path)
    again = DCGAN.from_pretrained(tmp_path)
    assert_same_model(again, dcgan)
    assert next(again.parameters()).dtype == torch.float16


def test_what_the_command_line_loads(tmp_path):
    dcgan = small()
    dcgan.save_pretrained(tmp_path)
    assert_same_model(load_model(tmp_path), dcgan)
    assert_same_model(load_model(tmp_path / "model.safetensors"), dcgan)


def test_another_class_is_refused(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds dcgan, which is no ConvVAE$"):
        models.ConvVAE.from_pretrained(str(tmp_path))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def convert_a_weight(folder, dtype):
    path = folder / "model.safetensors"
    with safetensors.safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(path)
    name = "discriminator.main.0.weight"
    safetensors.torch.save_file({**tensors, name: tensors[name].to(dtype)}, path, metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), r"config.json does not fit .*: its description is not JSON .*"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), r"config.json does not fit .*not JSON .*"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), r"config.json does not fit .*not JSON .*"),
        (
            lambda f: (f / "config.json").write_text("3"),
            r"config.json does not fit .*: expected keys and values, got 3",
        ),
        (lambda f: (f / "config.json").write_text("{}"), r"config.json does not say .*no 'model' in it.*"),
        (lambda f: edit_config(f, model="os.system"), r"model must be one of .*, got 'os.system'"),
        (
            lambda f: edit_config(f, train={}),
            r"is the folder of a training run: genimg_fast.training.load_model reads it",
        ),
        (lambda f: edit_config(f, model=["vae"]), r"config.json does not fit the model it names: .*"),
        (lambda f: edit_config(f, config=3), r"does not fit the model it names: .*"),
        (
            lambda f: edit_config(f, config={"width": 10**5}),
            r"model.safetensors does not fit .* is \(.*\) and should be \(.*\), and \d+ more are wrong",
        ),
        (lambda f: edit_config(f, config={"width": 10**30}), r"does not fit the model it names: .*"),
        (lambda f: edit_config(f, config={"device": "cuda"}), r"unknown argument 'device'; allowed are .*"),
        (
            lambda f: edit_config(f, model="vae", config={}),
            r"model.safetensors does not fit .* is not there and should be .*",
        ),
        (
            lambda f: convert_a_weight(f, torch.int32),
            r"does not fit .*: discriminator\.main\.0\.weight is of torch\.int32",
        ),
        (
            lambda f: convert_a_weight(f, torch.bool),
            r"does not fit .*: discriminator\.main\.0\.weight is of torch\.bool",
        ),
        (
            lambda f: convert_a_weight(f, torch.complex64),
            r"does not fit .*: .*\.main\.0\.weight is of torch\.complex64",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 900), r"model.safetensors is damaged or is not .*"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 999), r"model.safetensors is damaged or is not .*"),
    ],
)
def test_hostile_folders_are_one_line(tmp_path, damage, message):
    small().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)\A[^\n]*{message}\Z") as caught:
        ImageModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    small().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        ImageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "../secret", "/no/where", "a/b/c", Path("owner/name")])
def test_what_cannot_be_a_repository_is_not_looked_for_on_the_hub(source, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match=r"is neither a folder nor the name of a repository \(owner/name\)$"):
        ImageModel.from_pretrained(source)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in place of the Hub.  The signatures are the real ones, so a call that they refuse fails."""
    root = tmp_path / "hub"

    class Api(huggingface_hub.HfApi):
        def create_repo(self, repo_id, **kwargs):
            (root / repo_id).mkdir(parents=True, exist_ok=True)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, **kwargs):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return f"https://huggingface.co/{repo_id}"

    api = Api()
    for name in ("create_repo", "upload_folder"):
        checked = create_autospec(getattr(huggingface_hub.HfApi(), name), side_effect=getattr(api, name))
        monkeypatch.setattr(Api, name, staticmethod(checked))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)

    def download(repo_id, **kwargs):
        if not (root / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the Hub\nand more lines")
        return str(root / repo_id)

    checked = create_autospec(huggingface_hub.snapshot_download, side_effect=download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", checked)
    return root


def test_through_the_hub_and_back(hub):
    dcgan = small()
    assert "owner/digits" in dcgan.push_to_hub("owner/digits", private=True)
    assert sorted(os.listdir(hub / "owner" / "digits")) == ["config.json", "model.safetensors"]
    assert huggingface_hub.HfApi.create_repo.call_args.kwargs["private"] is True
    assert_same_model(DCGAN.from_pretrained("owner/digits", revision="v1"), dcgan)
    call = huggingface_hub.snapshot_download.call_args
    assert call.kwargs == {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]}


def test_a_hub_that_refuses_is_one_line(hub):
    with pytest.raises(FileNotFoundError, match=r"\A'owner/none' is no folder, .* Hub: cannot reach the Hub\Z"):
        DCGAN.from_pretrained("owner/none")


def test_an_extra_that_is_missing_is_named(tmp_path):
    small().save_pretrained(tmp_path)
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["huggingface_hub", "safetensors"]))
from genimg_fast.models import ImageModel, create
for action in (lambda: ImageModel.from_pretrained("owner/name"), lambda: create("vae").push_to_hub("owner/name"),
               lambda: ImageModel.from_pretrained({str(tmp_path)!r}), lambda: create("vae").save_pretrained({str(tmp_path / "x")!r})):
    try:
        action()
    except ImportError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(line.endswith("pip install 'genimg-fast[hub]'") for line in lines), lines
    assert not (tmp_path / "x" / "config.json").exists()


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    small().save_pretrained(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        small().save_pretrained(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_files_are_what_other_tools_expect(tmp_path):
    dcgan = small()
    dcgan.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description == {"library": "genimg_fast", "model": "dcgan", "config": dcgan.config}
    assert set(safetensors.torch.load_file(tmp_path / "model.safetensors")) == set(dcgan.state_dict())
