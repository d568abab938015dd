# SPDX-License-Identifier: MIT
"""Files of a run that must survive anything: the resume file (to continue) and safetensors (to use and share).

A file is written beside its place, flushed to disk and renamed, so a kill leaves the old one or the new one.  Nothing is
unpickled: resume files are read with `weights_only=True`, weights with safetensors.
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch

from genimg_fast import _files, models
from genimg_fast.models import pretrained
from genimg_fast.training.errors import UserError

_FORMAT = "genimg_fast resume file 1"
_RUN_FILES = ("config.json", "metrics.jsonl", "checkpoints")
_DAMAGE = (
    zipfile.BadZipFile,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
)
LAST, PREVIOUS = "last.pt", "previous.pt"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """`_files.write_atomically`, whose errors are for the user.

    Raises:
        UserError: if the disk is full, the folder cannot be written to, and the like.
    """
    try:
        _files.write_atomically(path, write)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def check_folder(out: Path, *, resume: bool) -> None:
    """That there is a run to be resumed, or nothing in the way of a new one.  Writes nothing.

    Raises:
        UserError: if there is a run and it is not to be resumed, or the other way round.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; a run needs a folder")
    present = [name for name in _RUN_FILES if (out / name).exists()]
    if present and not resume:
        raise UserError(f"{out} already holds a run ({', '.join(present)}); resume it or choose another folder")
    if resume and not present:
        raise UserError(f"{out} holds no run to resume; start it without resume")


def claim_folder(out: Path, *, resume: bool) -> None:
    """Makes the folders of a new run, or gets those of a killed one ready to continue.

    Raises:
        UserError: as `check_folder`.
    """
    check_folder(out, resume=resume)
    for folder in (out, out / "checkpoints", out / "samples"):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".*{_files.TEMPORARY}"):
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
    path = _newest(folder)
    return _read_resume(path) if path.exists() else None


def _newest(folder: Path) -> Path:
    last, previous = folder / LAST, folder / PREVIOUS
    return previous if previous.exists() and not last.exists() else last


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
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise zipfile.BadZipFile("it is compressed, which torch.save never does and a decompression bomb is")
            if (name := archive.testzip()) is not None:  # torch does not verify the checksums
                raise zipfile.BadZipFile(f"wrong checksum of {name!r}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError("not written by this version")
        if int(state["step"]) < 0:
            raise ValueError(f"step is {state['step']}")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than tensors and plain values, so reading it could run code; "
            "if it is not yours, delete it"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return state


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Around the use of what `load_resume` returned: a file may be whole, and yet not hold what a run saved.

    Raises:
        UserError: in place of the error that this leads to.
    """
    try:
        yield
    except UserError:
        raise
    except _DAMAGE as error:
        raise _damaged(_newest(folder), error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    lines = str(error).splitlines() or [""]
    reason = f"no {lines[0]} in it" if isinstance(error, KeyError) else lines[0] or type(error).__name__
    return UserError(
        f"{path} is damaged or is not a resume file ({reason}); restore it from a copy, or start again in another folder"
    )


def save_weights(path: Path, model: models.ImageModel, *, step: int) -> None:
    """Exports the weights, with the model's name and arguments in the metadata, so that the file is enough to load it."""
    try:
        pretrained.save_weights(path, model, step=str(step))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def load_model(path: str | Path) -> models.ImageModel:
    """Loads a trained model in eval mode, on the CPU.

    Args:
        path: a run's folder (then its best.safetensors, or last.safetensors if it was never validated), a .safetensors
            file written by a run, or a folder written by `save_pretrained`.

    Raises:
        UserError: if there is no such file, or it is damaged, or was not written by a run.
    """
    path = Path(path)
    file = find_weights(path)
    try:
        return pretrained.load_folder(path) if file == path / pretrained.WEIGHTS else pretrained.load_weights(file)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or file}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def find_weights(path: Path) -> Path:
    """The file that `load_model` reads."""
    if not path.is_dir():
        return path
    candidates = [path / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")]
    for candidate in (path / pretrained.WEIGHTS, *candidates):
        if candidate.exists():
            return candidate
    raise UserError(f"{path} holds no trained model: {candidates[0]} and {candidates[1].name} are missing")


def step_of_weights(file: Path) -> int | None:
    """The step at which `save_weights` wrote the file; None if something else wrote it."""
    with safetensors.safe_open(file, framework="pt") as opened:
        step = (opened.metadata() or {}).get("step", "")
    return int(step) if step.isdecimal() else None
