# SPDX-License-Identifier: MIT
"""Files of a run that must survive anything: the resume file (to continue) and safetensors (to use and share).

A file is written beside its place, flushed to disk and renamed, so a kill leaves the old one or the new one.  Nothing is
unpickled: resume files are read with `weights_only=True`, weights with safetensors.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from genimg_fast import models
from genimg_fast.training.errors import UserError

_FORMAT = "genimg_fast resume file 1"
_TEMPORARY = ".tmp"
_RUN_FILES = ("config.json", "metrics.jsonl", "checkpoints")
LAST, PREVIOUS = "last.pt", "previous.pt"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Makes `path` hold what `write` writes, or leaves it as it was.

    Raises:
        UserError: if the disk is full, the folder cannot be written to, and the like.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=_TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets nobody else read
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def claim_folder(out: Path, *, resume: bool) -> None:
    """Makes the folders of a new run, or gets those of a killed one ready to continue.

    Raises:
        UserError: if there is a run and it is not to be resumed, or the other way round.
    """
    present = [name for name in _RUN_FILES if (out / name).exists()]
    if present and not resume:
        raise UserError(f"{out} already holds a run ({', '.join(present)}); resume it or choose another folder")
    if resume and not present:
        raise UserError(f"{out} holds no run to resume; start it without resume")
    for folder in (out, out / "checkpoints", out / "samples"):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in (*folder.glob(f"*{_TEMPORARY}"), *folder.glob(f".*{_TEMPORARY}")):
            leftover.unlink(missing_ok=True)
    if resume:
        _set_damaged_aside(out / "checkpoints")


def save_resume(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, text, and lists, tuples and dicts of them) to last.pt; the one before becomes previous.pt."""
    # Through memory: when the disk is full, torch's own writer reports an internal error in place of the cause.
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    last = folder / LAST

    def write(file: BinaryIO) -> None:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
        if last.exists():
            os.replace(last, folder / PREVIOUS)  # the new one is complete: from here on either of the two is found

    write_atomically(last, write)


def load_resume(folder: Path) -> dict[str, Any] | None:
    """Reads last.pt, or previous.pt where there is no last.pt; None where neither was ever written.

    Raises:
        UserError: if the file cannot be read, naming it and what to do.
    """
    for path in (folder / LAST, folder / PREVIOUS):
        if path.exists():
            return _read_resume(path)
    return None


def _set_damaged_aside(folder: Path) -> None:
    """Renames a last.pt that cannot be read, so that the next save does not put it in the place of a good previous.pt."""
    last, previous = folder / LAST, folder / PREVIOUS
    if not (last.exists() and previous.exists()):
        return
    try:
        _read_resume(last)
    except UserError as error:
        os.replace(last, folder / (LAST + ".damaged"))
        warnings.warn(f"{error}; continuing from {previous}", stacklevel=2)


def _read_resume(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:  # torch does not verify the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {member}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError("not written by this version")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values, so reading it could run code; "
            "if it is not yours, delete it"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, KeyError, NotImplementedError) as error:
        raise UserError(
            f"{path} is damaged or is not a resume file ({str(error).splitlines()[0]}); restore it from a copy, or start "
            "again in another folder"
        ) from error
    return state


def save_weights(path: Path, model: models.ImageModel, *, step: int) -> None:
    """Exports the weights, with the model's name and arguments in the metadata, so that the file is enough to load it."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    metadata = {"format": "pt", "model": model.name, "config": json.dumps(model.config), "step": str(step)}
    content = safetensors.torch.save(tensors, metadata=metadata)
    write_atomically(path, lambda file: file.write(content))


def load_model(path: str | Path) -> models.ImageModel:
    """Loads a trained model in eval mode, on the CPU.

    Args:
        path: a run's folder (then its best.safetensors, or last.safetensors if it was never validated) or a .safetensors
            file written by a run.

    Raises:
        UserError: if there is no such file, or it is damaged, or was not written by a run.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        candidates = [path / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")]
        found = [candidate for candidate in candidates if candidate.exists()]
        if not found:
            raise UserError(f"{path} holds no trained model: {candidates[0]} and {candidates[1].name} are missing")
        file = found[0]
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        name, config = metadata["model"], json.loads(metadata["config"])
        model = models.create(name, **config)
        model.load_state_dict(tensors)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged or is not a safetensors file ({error})") from error
    except KeyError as error:
        raise UserError(f"{file} does not say which model it holds (no {error} in its metadata)") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file} does not fit the model it names: {' '.join(str(error).split())}") from error
    return model.eval()
