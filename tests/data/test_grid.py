# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import torch
from PIL import Image

from genimg_fast.data import save_grid, to_grid
from genimg_fast.data.grid import most_images


def test_layout():
    images = torch.arange(1, 6).view(5, 1, 1, 1).expand(5, 3, 2, 3) / 255
    grid = to_grid(images, columns=2, padding=1)
    expected = np.zeros((3 * 3 + 1, 2 * 4 + 1), dtype=np.uint8)
    for number, (top, left) in enumerate([(1, 1), (1, 5), (4, 1), (4, 5), (7, 1)], start=1):
        expected[top : top + 2, left : left + 3] = number
    assert grid.dtype == np.uint8
    assert np.array_equal(grid, np.stack([expected] * 3, axis=2))


@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(1, None, (1, 1)), (9, None, (3, 3)), (10, None, (3, 4)), (3, 8, (1, 3))]
)
def test_rows_and_columns(count, columns, shape):
    assert to_grid(torch.zeros(count, 1, 1, 1), columns, padding=0).shape == shape


@pytest.mark.parametrize("columns", [None, 1, 3, 1000])
def test_the_most_images_are_the_last_that_fit(monkeypatch, columns):
    monkeypatch.setattr("genimg_fast.data.grid.MAX_PIXELS", 1000)
    most = most_images(4, 6, columns)
    size = [to_grid(torch.zeros(count, 1, 4, 6), columns).size for count in (most, most + 1)]
    assert size[0] <= 1000 < size[1]
    assert most_images(4000, 6000) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_values_are_rounded_and_clamped(dtype):
    values = torch.tensor([0, 1, 0.5, -0.1, 1.1, float("nan"), float("inf"), float("-inf")], dtype=dtype)
    grid = to_grid(values.view(1, 1, 1, 8).requires_grad_(), padding=0)
    assert grid.tolist() == [[0, 255, 128, 0, 255, 0, 255, 0]]


def test_every_byte_survives_the_file(tmp_path):
    images = torch.arange(256).view(1, 1, 16, 16) / 255
    path = tmp_path / "new" / "grid.png"
    save_grid(images.expand(1, 3, 16, 16), path, padding=0)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image)[:, :, 1], np.arange(256).reshape(16, 16))
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 & ~os.umask(os.umask(0o022))


@pytest.mark.parametrize("broken", ["PIL.Image.Image.save", "os.fsync", "os.replace"])
def test_a_failure_at_any_step_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="No space left"):
        save_grid(torch.zeros(1, 1, 4, 4), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": [1]}, TypeError, "images must be a floating point Tensor, got list"),
        ({"images": torch.zeros(1, 1, 2, 2).byte()}, TypeError, "must be a floating point Tensor, got torch.uint8"),
        ({"images": torch.zeros(1, 2, 2)}, ValueError, r"must be \(N, C, H, W\) .* got \(1, 2, 2\)"),
        ({"images": torch.zeros(1, 4, 2, 2)}, ValueError, r"C 1 or 3, and not empty, got \(1, 4, 2, 2\)"),
        ({"images": torch.zeros(0, 3, 2, 2)}, ValueError, r"not empty, got \(0, 3, 2, 2\)"),
        ({"columns": 0}, ValueError, "columns must be at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must not be negative, got -1"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, error, message):
    with pytest.raises(error, match=message):
        to_grid(**{"images": torch.zeros(1, 1, 2, 2), **arguments})


def test_only_png(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in .png, got '.*grid.jpg'"):
        save_grid(torch.zeros(1, 1, 2, 2), tmp_path / "grid.jpg")
