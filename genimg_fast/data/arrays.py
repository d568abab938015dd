# SPDX-License-Identifier: MIT
"""Small data sets, held in memory at the size they are used at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from genimg_fast.data.errors import DataError
from genimg_fast.data.transforms import fit_image, to_unit_range

MAX_ARRAY_BYTES = 2**32
"""What a data set may take in memory, as stored on disk and again as resized. An image folder has no such limit."""


class ArrayDataset(Dataset[torch.Tensor]):
    """Images resized once and kept as one uint8 tensor; items are float32 (channels, image_size, image_size) in [0, 1].

    Args:
        images: uint8 arrays of shape (H, W) or (H, W, 3), all of one number of dimensions, sizes may differ.
        name: what to call the data set in logs.
        kind: "digits", "photos", "idx" or "cifar10".
        image_size: height and width of the items.
        channels: 1 or 3.

    Raises:
        DataError: there are no images, or the result would take more than `MAX_ARRAY_BYTES`.
    """

    def __init__(
        self, images: Sequence[np.ndarray] | np.ndarray, *, name: str, kind: str, image_size: int, channels: int
    ) -> None:
        self.name = name
        self.kind = kind
        self._channels = channels
        if len(images) == 0:
            raise DataError(f"{name}: no images")
        stored_channels = 1 if images[0].ndim == 2 else channels  # grey is kept once and repeated when read
        shape = (len(images), stored_channels, image_size, image_size)
        check_bytes(name, int(np.prod(shape, dtype=object)))
        self._images = torch.empty(shape, dtype=torch.uint8)
        for index, image in enumerate(images):
            self._images[index] = fit_image(Image.fromarray(image), image_size, stored_channels)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_unit_range(self._images[index]).expand(self._channels, -1, -1).contiguous()


def check_bytes(what: str, size: int) -> None:
    """Raises DataError if `size` bytes are more than a data set in memory may take."""
    if size > MAX_ARRAY_BYTES:
        raise DataError(
            f"{what}: {size} bytes in memory; at most {MAX_ARRAY_BYTES} are allowed, a folder of images has no limit"
        )
