# SPDX-License-Identifier: MIT
"""A folder of images, decoded when they are read; bad files are named, skipped and counted."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import torch
from torch.utils.data import Dataset

from genimg_fast.data.decode import read_image
from genimg_fast.data.errors import DataError, quoted
from genimg_fast.data.transforms import to_unit_range

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""Files with these endings, in any case, are taken for images. What decodes them is their content."""

_HELD_OUT = ("test", "val", "validation", "valid")


class ImageFolder(Dataset[torch.Tensor]):
    """Every image below a folder, in the order of their paths; float32 (channels, image_size, image_size) in [0, 1].

    Split: if the folder holds `train/` and one of `test/`, `val/`, `validation/` and `valid/` (the first of them that there
    is), these are the splits and nothing else is read.
    Otherwise "test" is a tenth of the files (at least one), chosen by a hash of their paths within the folder, so that
    new files hardly move old ones; "train" is the rest. A folder of one image serves it to both.

    Links: a link to a file is followed, wherever it leads, since data sets are often farms of links into a store. A
    link to a folder inside is not, since it may lead back up or to the whole disk; a warning names it. Hidden files and
    folders are left out.

    Bad files: a file that `decode.read_image` refuses is named in a warning and the next good one (in order,
    cyclically) takes its place, so an item depends on the files alone. DataLoader workers share the count, and each
    file is named once.

    Args:
        folder: where to look, recursively.
        split: "train" or "test".
        image_size: height and width of the items.
        channels: 1 or 3.
        max_bad_files: how many files may be skipped.

    Raises:
        DataError: at once, if there are no images or a folder cannot be read; when an item is read, if
            more than `max_bad_files` files, or all, are bad.
    """

    kind = "images"

    def __init__(self, folder: Path, *, split: str, image_size: int, channels: int, max_bad_files: int) -> None:
        self.name = folder.resolve().name
        self._folder = folder
        self._files = _files_of_split(folder, split)
        self._image_size = image_size
        self._channels = channels
        self._max_bad_files = max_bad_files
        # One flag a file, in memory that worker processes share: a worker's discovery is every worker's.
        self._bad = torch.zeros(len(self._files), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        count = len(self._files)
        first = range(count)[index]
        for step in range(count):
            position = (first + step) % count
            if self._bad[position]:
                continue
            try:
                return to_unit_range(read_image(self._files[position], self._image_size, self._channels))
            except DataError as error:
                self._skip(position, error)
        raise DataError(f"{quoted(self._folder)}: none of its {count} image files can be read")

    def _skip(self, position: int, error: DataError) -> None:
        bad = int(self._bad.sum()) + 1
        if bad > self._max_bad_files:
            raise DataError(f"{error} (bad file number {bad}, max_bad_files is {self._max_bad_files})") from error
        self._bad[position] = True
        warnings.warn(f"{error} (skipped, bad file {bad} of at most {self._max_bad_files})", stacklevel=3)


def _files_of_split(folder: Path, split: str) -> list[str]:
    held_out = next((folder / name for name in _HELD_OUT if (folder / name).is_dir()), None)
    if held_out and (folder / "train").is_dir():
        return _image_files(folder / "train" if split == "train" else held_out)
    files = _image_files(folder)
    if len(files) == 1:
        return files
    by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(os.path.relpath(file, folder))).digest())
    test = set(by_hash[: max(1, len(files) // 10)])
    return [file for file in files if (file in test) == (split == "test")]


def _image_files(folder: Path) -> list[str]:
    """Paths of all files below that look like images, sorted; never empty."""
    files = []
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):  # os.walk lists it but does not enter it
                warnings.warn(f"{quoted(os.path.join(parent, name))}: a link to a folder is not followed", stacklevel=2)
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                files.append(os.path.join(parent, name))
    if not files:
        raise DataError(
            f"{quoted(folder)}: no images: looked for *{', *'.join(SUFFIXES)}, here and in the folders below"
        )
    return sorted(files)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{quoted(error.filename)}: cannot list this folder: {error.strerror}") from error
