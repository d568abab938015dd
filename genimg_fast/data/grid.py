# SPDX-License-Identifier: MIT
"""Batches of images as one picture."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from genimg_fast._files import write_atomically
from genimg_fast.data.decode import MAX_PIXELS

PADDING = 2


def most_images(height: int, width: int, columns: int | None = None) -> int:
    """The most images of this size of which `to_grid` makes a picture that `read_image` would take; at least 1."""

    def pixels(count: int) -> int:
        rows, in_row = _layout(count, columns)
        return (rows * (height + PADDING) + PADDING) * (in_row * (width + PADDING) + PADDING)

    return max(1, bisect_right(range(1, MAX_PIXELS), MAX_PIXELS, key=pixels))


def _layout(count: int, columns: int | None) -> tuple[int, int]:
    """(rows, images in a row)"""
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    return math.ceil(count / columns), columns


def to_grid(images: torch.Tensor, columns: int | None = None, padding: int = PADDING) -> np.ndarray:
    """Lays images out row by row, with black lines between and around them.

    Args:
        images: floating point (N, C, H, W) in [0, 1], C is 1 or 3, on any device. Values outside are clamped, and NaN
            is black.
        columns: images in a row; by default the rows and columns are about as many.
        padding: width of the lines in pixels.

    Returns:
        A uint8 array (height, width, 3), or (height, width) for C = 1, as `PIL.Image.fromarray` takes it.

    Raises:
        TypeError: images is not a floating point tensor.
        ValueError: the shape is another or empty, columns is below 1, or padding is negative.
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"to_grid: images must be a floating point Tensor, got {got}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"to_grid: images must be (N, C, H, W) with C 1 or 3, and not empty, got {tuple(images.shape)}"
        )
    if columns is not None and columns < 1:
        raise ValueError(f"to_grid: columns must be at least 1, got {columns}")
    if padding < 0:
        raise ValueError(f"to_grid: padding must not be negative, got {padding}")

    count, channels, height, width = images.shape
    rows, columns = _layout(count, columns)
    pixels = images.detach().float().nan_to_num(nan=0.0).clamp_(0, 1).mul_(255).round_().byte()
    step_y, step_x = height + padding, width + padding
    grid = np.zeros((rows * step_y + padding, columns * step_x + padding, channels), dtype=np.uint8)
    for index, image in enumerate(pixels.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = index // columns * step_y + padding, index % columns * step_x + padding
        grid[top : top + height, left : left + width] = image
    return grid[:, :, 0] if channels == 1 else grid


def save_grid(
    images: torch.Tensor, path: str | os.PathLike[str], columns: int | None = None, padding: int = PADDING
) -> None:
    """Writes `to_grid(images, columns, padding)` as a PNG. A kill at any moment leaves the old file or the new one.

    Missing folders are made. Raises what `to_grid` raises, ValueError if the path does not end in .png, and OSError.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"save_grid: path must end in .png, got {str(path)!r}")
    grid = Image.fromarray(to_grid(images, columns, padding))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: grid.save(file, format="PNG"))
