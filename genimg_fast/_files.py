# SPDX-License-Identifier: MIT
"""Writing files that a kill, a full disk or a power cut must not leave half written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
"""How the names of files end that are not complete yet."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Makes `path` hold what `write` writes, or leaves it as it was: written beside it, flushed to disk, renamed.

    Raises:
        OSError: if the disk is full, the folder cannot be written to, and the like; it names `path`.
    """
    try:
        _write(path, write)
        _sync_folder(path.parent)
    except OSError as error:  # a write that fails names no file, and what is made of others names the temporary one
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # which must not hide why
            temporary.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
