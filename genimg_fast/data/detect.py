# SPDX-License-Identifier: MIT
"""From what a user calls a data set to the data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Container
from pathlib import Path

from genimg_fast.data import cifar, idx
from genimg_fast.data.arrays import ArrayDataset
from genimg_fast.data.digits import open_digits
from genimg_fast.data.errors import DataError, quoted
from genimg_fast.data.folder import ImageFolder
from genimg_fast.data.photos import open_photos

BUILT_IN = {"digits": open_digits, "photos": open_photos}
SPLITS = ("train", "test")
MAX_IMAGE_SIZE = 8192


def open_dataset(
    spec: str | os.PathLike[str], *, split: str = "train", image_size: int, channels: int, max_bad_files: int = 10
) -> ArrayDataset | ImageFolder:
    """Opens a data set whose items are float32 tensors (channels, image_size, image_size) in [0, 1], without labels.

    Images are resized by their shorter side (bicubic, antialiased) and cropped at the center. `.name` and `.kind`
    say what was opened. The data set can be pickled, and read by DataLoader workers.

    Args:
        spec: "digits" (1797 handwritten digits) or "photos" (crops of two photographs), which scikit-learn carries, or
            the path of a folder (write "./digits" for a folder of such a name). Its files tell the kind, in this
            order: MNIST-format (`train-images-idx3-ubyte`, `t10k-images-idx3-ubyte`, also with .gz), CIFAR-10 binary
            version (`data_batch_*.bin`, `test_batch.bin`), images (see `ImageFolder` for how they are split).
        split: "train" or "test".
        image_size: height and width of the items, from 1 to 8192.
        channels: 1 (luma) or 3 (RGB).
        max_bad_files: how many unreadable files of an image folder are skipped, each with a warning. One more is an
            error.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: split, image_size, channels or max_bad_files is out of range.
        DataError: the data is missing or cannot be used; the text is one line that names the file.
    """
    if not isinstance(spec, (str, os.PathLike)):
        raise TypeError(f"open_dataset: spec must be a str or a path, got {type(spec).__name__}")
    if split not in SPLITS:
        raise ValueError(f"open_dataset: split must be 'train' or 'test', got {split!r}")
    _check_int("image_size", image_size, range(1, MAX_IMAGE_SIZE + 1), f"from 1 to {MAX_IMAGE_SIZE}")
    _check_int("channels", channels, (1, 3), "1 (luma) or 3 (RGB)")
    _check_int("max_bad_files", max_bad_files, range(sys.maxsize), "0 or more")

    if spec in BUILT_IN:
        return BUILT_IN[str(spec)](split=split, image_size=image_size, channels=channels)
    folder = Path(spec)
    if not str(spec) or not folder.exists():
        raise DataError(f"{quoted(spec)}: neither a data set ({', '.join(BUILT_IN)}) nor an existing folder")
    if not folder.is_dir():
        raise DataError(f"{quoted(spec)}: not a folder; pass the folder that the file is in")
    if any(idx.find_idx(folder, name) for name in SPLITS):
        return idx.open_idx(folder, split=split, image_size=image_size, channels=channels)
    if any(cifar.find_cifar(folder, name) for name in SPLITS):
        return cifar.open_cifar(folder, split=split, image_size=image_size, channels=channels)
    return ImageFolder(folder, split=split, image_size=image_size, channels=channels, max_bad_files=max_bad_files)


def _check_int(name: str, value: object, allowed: Container[int], words: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"open_dataset: {name} must be an int, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"open_dataset: {name} must be {words}, got {value}")
