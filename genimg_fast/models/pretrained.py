# SPDX-License-Identifier: MIT
"""Models as files: safetensors that name their model, and folders of one such file and a config.json, to share.

What is read may be hostile.  Nothing is unpickled or called by name, and memory is taken for what the file holds, not for what
its description claims.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genimg_fast import models
from genimg_fast._files import write_atomically

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # the names that tools of the Hugging Face Hub look for
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def save_weights(path: Path, model: models.ImageModel, **metadata: str) -> None:
    """Writes a safetensors file that `load_weights` alone can make the model of.

    Raises:
        OSError: if it cannot be written; then `path` is what it was.
    """
    safetensors = _import_safetensors()
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    description = {"format": "pt", "model": model.name, "config": json.dumps(model.config), **metadata}
    content = safetensors.torch.save(tensors, metadata=description)
    write_atomically(path, lambda file: file.write(content))


def load_weights(path: Path) -> models.ImageModel:
    """The model that `save_weights` wrote, in eval mode, on the CPU.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged or describes no model of this package, in one line.
    """
    tensors, metadata = _read_safetensors(path)
    try:
        name, config = metadata["model"], metadata["config"]
    except KeyError as error:
        raise ValueError(f"{path} does not say which model it holds (no {error} in its metadata)") from error
    return _build(name, _parse(path, config), tensors, described_in=path, path=path)


def save_folder(folder: Path, model: models.ImageModel) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / WEIGHTS, model)
    text = json.dumps({"library": "genimg_fast", "model": model.name, "config": model.config}, indent=2) + "\n"
    write_atomically(folder / CONFIG, lambda file: file.write(text.encode()))


def load_folder(folder: Path) -> models.ImageModel:
    path = folder / CONFIG
    description = _parse(path, path.read_bytes())
    if "train" in description:
        raise ValueError(f"{folder} is the folder of a training run: genimg_fast.training.load_model reads it")
    for key in ("model", "config"):
        if key not in description:
            raise ValueError(f"{path} does not say which model it holds (no {key!r} in it)")
    tensors, _ = _read_safetensors(folder / WEIGHTS)
    return _build(description["model"], description["config"], tensors, described_in=path, path=folder / WEIGHTS)


def find(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder `source`, or what the repository of that name on the Hugging Face Hub holds, downloaded."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not isinstance(source, str) or not _REPOSITORY.fullmatch(source):
        raise FileNotFoundError(f"{str(source)!r} is neither a folder nor the name of a repository (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise _missing_extra() from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError) as error:  # whatever went wrong on the way, the Hub's client raises one of these
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FileNotFoundError(f"{source!r} is no folder, and could not be had from the Hub: {reason}") from error


def upload(model: models.ImageModel, repository: str, *, private: bool) -> str:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise _missing_extra() from error
    api = HfApi()
    repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save_folder(Path(folder), model)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{model.name} weights"))


def _missing_extra() -> ImportError:
    return ImportError("saved models and the Hugging Face Hub need further packages: pip install 'genimg-fast[hub]'")


def _import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise _missing_extra() from error
    return safetensors


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    safetensors = _import_safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or is not a safetensors file ({error})") from error


def _parse(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not fit the model it names: its description is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not fit the model it names: expected keys and values, got {values!r:.40}")
    return values


def _build(
    name: Any, config: Any, tensors: dict[str, torch.Tensor], *, described_in: Path, path: Path
) -> models.ImageModel:
    try:
        with torch.device("meta"):  # a width of 10^9 costs nothing before it is found not to fit
            model = models.create(name, **config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{described_in} does not fit the model it names: {reason}") from error
    expected = model.state_dict()
    wrong = [
        f"{key} is {_shape(tensors, key)} and should be {_shape(expected, key)}"
        for key in dict.fromkeys((*expected, *tensors))
        if _shape(tensors, key) != _shape(expected, key)
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise ValueError(f"{path} does not fit the model it names: {wrong[0]}{more}")
    for key, tensor in expected.items():
        if tensors[key].is_floating_point() != tensor.is_floating_point() or tensors[key].is_complex():
            raise ValueError(f"{path} does not fit the model it names: {key} is of {tensors[key].dtype}")
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _shape(tensors: Mapping[str, torch.Tensor], key: str) -> str:
    return str(tuple(tensors[key].shape)) if key in tensors else "not there"
