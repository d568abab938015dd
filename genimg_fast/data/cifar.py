# SPDX-License-Identifier: MIT
"""CIFAR-10 in its binary version (Krizhevsky 2009): records of one label byte and 3 x 32 x 32 bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genimg_fast.data.arrays import ArrayDataset, check_bytes
from genimg_fast.data.errors import DataError, quoted

FILE_NAMES = {"train": "data_batch_*.bin", "test": "test_batch.bin"}
"""The files of a split, all of which are read in the order of their names."""

_RECORD_BYTES = 1 + 3 * 32 * 32
_CLASSES = 10


def find_cifar(folder: Path, split: str) -> list[Path]:
    """The split's files in the folder, sorted; empty if there are none."""
    return sorted(path for path in folder.glob(FILE_NAMES[split]) if path.is_file())


def open_cifar(folder: Path, *, split: str, image_size: int, channels: int) -> ArrayDataset:
    """The images of one split, without their labels.

    Raises:
        DataError: the folder has no file for the split, or one of them cannot be read or holds something else.
    """
    paths = find_cifar(folder, split)
    if not paths:
        raise DataError(f"{quoted(folder)}: no file for split {split!r}: {FILE_NAMES[split]}")
    images = np.concatenate([_read_batch(path) for path in paths])
    return ArrayDataset(images, name=folder.resolve().name, kind="cifar10", image_size=image_size, channels=channels)


def _read_batch(path: Path) -> np.ndarray:
    """A uint8 array (N, 32, 32, 3)."""
    try:
        size = path.stat().st_size
        if size == 0 or size % _RECORD_BYTES:
            raise DataError(
                f"{quoted(path)}: {size} bytes; a CIFAR-10 batch has a multiple of {_RECORD_BYTES}, and at least one"
            )
        check_bytes(quoted(path), size)
        records = np.fromfile(path, dtype=np.uint8, count=size).reshape(-1, _RECORD_BYTES)
    except OSError as error:
        raise DataError(f"{quoted(path)}: {error.strerror or error}") from error
    largest = records[:, 0].max()
    if largest >= _CLASSES:
        raise DataError(f"{quoted(path)}: label {largest}; CIFAR-10 labels are 0 to {_CLASSES - 1}")
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
