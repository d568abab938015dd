# SPDX-License-Identifier: MIT
"""MNIST-format folders: images in IDX files (LeCun et al. 1998), plain or gzip-compressed.

An IDX file starts with four bytes (0, 0, element type, number of dimensions), then each dimension as a big-endian
unsigned 32-bit number, then the elements.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from genimg_fast.data.arrays import ArrayDataset, check_bytes
from genimg_fast.data.errors import DataError, quoted

FILE_NAMES = {
    split: [f"{stem}{mark}idx3-ubyte{packed}" for mark in "-." for packed in ("", ".gz")]
    for split, stem in (("train", "train-images"), ("test", "t10k-images"))
}
"""The names a split's file may have, the first that exists is read."""

_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
_HEADER_BYTES = 16
_DEFLATE_MAX_RATIO = 1032  # no gzip stream expands further


def find_idx(folder: Path, split: str) -> Path | None:
    """The split's image file in the folder, or None."""
    return next((folder / name for name in FILE_NAMES[split] if (folder / name).is_file()), None)


def open_idx(folder: Path, *, split: str, image_size: int, channels: int) -> ArrayDataset:
    """The grey images of one split.

    Raises:
        DataError: the folder has no file for the split, or `read_idx_images` refuses it.
    """
    path = find_idx(folder, split)
    if path is None:
        raise DataError(f"{quoted(folder)}: no file for split {split!r}: {', '.join(FILE_NAMES[split])}")
    images = read_idx_images(path)
    return ArrayDataset(images, name=folder.resolve().name, kind="idx", image_size=image_size, channels=channels)


def read_idx_images(path: Path) -> np.ndarray:
    """A uint8 array (N, H, W).

    Raises:
        DataError: the file cannot be read, is no IDX file of uint8 images, or its length is not what its header says.
    """
    try:
        file_bytes = os.stat(path).st_size
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            shape = _parse_header(path, file.read(_HEADER_BYTES))
            expected = math.prod(shape)
            # The header decides how much is read, so it is held against the file's size first.
            available = file_bytes * _DEFLATE_MAX_RATIO if path.suffix == ".gz" else file_bytes - _HEADER_BYTES
            if expected <= available:
                check_bytes(quoted(path), expected)
                elements = file.read(expected + 1)
                available = len(elements)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{quoted(path)}: {getattr(error, 'strerror', None) or error}") from error
    if available != expected:
        size = "more" if available > expected else "fewer"
        raise DataError(
            f"{quoted(path)}: header says {' x '.join(map(str, shape))} = {expected} bytes, the file has {size}"
        )
    return np.frombuffer(elements, dtype=np.uint8).reshape(shape)


def _parse_header(path: Path, header: bytes) -> tuple[int, int, int]:
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] not in _TYPES:
        start = header[:4].hex(" ") or "nothing"
        raise DataError(f"{quoted(path)}: not an IDX file of images: it must start with 00 00 08 03, got {start}")
    if header[2] != 0x08:
        raise DataError(f"{quoted(path)}: elements are {_TYPES[header[2]]}; only uint8 is allowed")
    if header[3] != 3:
        hint = " (a labels file?)" if header[3] == 1 else ""
        raise DataError(f"{quoted(path)}: {header[3]} dimensions{hint}; images have 3 (count, height, width)")
    if len(header) < _HEADER_BYTES:
        raise DataError(f"{quoted(path)}: ends within its header of {_HEADER_BYTES} bytes")
    count, height, width = struct.unpack(">3I", header[4:])
    if not count or not height or not width:
        raise DataError(f"{quoted(path)}: header says {count} x {height} x {width}; each must be at least 1")
    return count, height, width
