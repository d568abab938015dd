# SPDX-License-Identifier: MIT
"""Writes tiny data sets of every kind, so that no test needs a download."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 values."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def random_image(width: int = 20, height: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(pixels(height, width, 3, seed=seed))


def solid_image(level: int, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), (level, level, level))


def write_folder(folder: Path, count: int) -> list[Path]:
    """PNG files 00.png, 01.png, ... each of one grey level, 10 times its number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(solid_image(10 * number)))
    return paths


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def idx(shape: tuple[int, ...], data: bytes | None = None, type_code: int = 0x08) -> bytes:
    """The bytes of an IDX file; `data` may disagree with `shape`."""
    if data is None:
        data = pixels(math.prod(shape)).tobytes()
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, type_code, len(shape), *shape) + data


def write(path: Path, data: bytes) -> Path:
    """Writes the file and its folders, compressed if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def cifar_batch(images: np.ndarray, label: int = 3) -> bytes:
    """The bytes of a CIFAR-10 batch from a uint8 array (N, 3, 32, 32)."""
    return b"".join(bytes([label]) + image.tobytes() for image in images)
