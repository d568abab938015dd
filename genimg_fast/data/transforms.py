# SPDX-License-Identifier: MIT
"""Any Pillow image to a square uint8 tensor: one transform for all kinds of data sets."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps


def fit_image(image: Image.Image, image_size: int, channels: int) -> torch.Tensor:
    """Resizes the shorter side to `image_size` (bicubic, antialiased) and crops the center.

    Args:
        image: any Pillow mode. 16-bit grey is scaled to 8 bits; transparency is composited on white.
        image_size: height and width of the result.
        channels: 1 (luma, ITU-R BT.601) or 3 (RGB).

    Returns:
        A uint8 tensor (channels, image_size, image_size).
    """
    flat = _flatten(image, "L" if channels == 1 else "RGB")
    square = ImageOps.fit(flat, (image_size, image_size), method=Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).reshape(image_size, image_size, channels)
    return pixels.permute(2, 0, 1).contiguous()


def to_unit_range(image: torch.Tensor) -> torch.Tensor:
    """uint8 in 0..255 to float32 in [0, 1], of the same shape."""
    return image.float().div_(255)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """To 8 bits a channel, without transparency."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 where we scale
        levels = np.asarray(image).astype(np.float32) / 257  # 65535 / 255
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
