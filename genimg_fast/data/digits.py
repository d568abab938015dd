# SPDX-License-Identifier: MIT
"""The 1797 handwritten digits inside scikit-learn (`sklearn.datasets.load_digits`; Alpaydin and Kaynak 1998, UCI)."""

from __future__ import annotations

import numpy as np

from genimg_fast.data.arrays import ArrayDataset


def open_digits(*, split: str, image_size: int, channels: int) -> ArrayDataset:
    """8x8 images of 17 grey levels (0..16), here spread over 0..255.

    The split is stratified and fixed: within each digit, in the order of the data set, every fifth image is "test"
    (355 images) and the others are "train" (1442).
    """
    from sklearn.datasets import load_digits  # takes about a second: only when used

    bunch = load_digits()
    chosen = np.zeros(len(bunch.target), dtype=bool)
    for digit in range(10):
        chosen[np.flatnonzero(bunch.target == digit)[4::5]] = True
    if split == "train":
        chosen = ~chosen
    images = (bunch.images[chosen] * (255 / 16)).round().astype(np.uint8)
    return ArrayDataset(images, name="digits", kind="digits", image_size=image_size, channels=channels)
