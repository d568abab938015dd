# SPDX-License-Identifier: MIT
"""Crops of the two photographs inside scikit-learn (`sklearn.datasets.load_sample_images`: china.jpg, flower.jpg)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genimg_fast.data.arrays import ArrayDataset

CROP_SIZES = (64, 96, 128)
"""Side of the square crops, in pixels of the photograph. Neighbours of one size overlap by three quarters."""

TEST_SHARE = 0.25
"""Share of each photograph's width, at its right edge, that test crops come from. No train crop touches it."""


def open_photos(*, split: str, image_size: int, channels: int) -> ArrayDataset:
    """All crops of both photographs: nothing is random, so two runs see the same images in the same order."""
    from sklearn.datasets import load_sample_images  # takes about a second: only when used

    crops = [crop for photo in load_sample_images().images for crop in _crops(_region(photo, split))]
    return ArrayDataset(crops, name="photos", kind="photos", image_size=image_size, channels=channels)


def _region(photo: np.ndarray, split: str) -> np.ndarray:
    border = round(photo.shape[1] * (1 - TEST_SHARE))
    return photo[:, :border] if split == "train" else photo[:, border:]


def _crops(region: np.ndarray) -> Iterator[np.ndarray]:
    height, width, _ = region.shape
    for size in CROP_SIZES:
        for top in range(0, height - size + 1, size // 4):
            for left in range(0, width - size + 1, size // 4):
                yield region[top : top + size, left : left + size]
