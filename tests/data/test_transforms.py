# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from genimg_fast.data.transforms import fit_image, to_unit_range
from tests.data import _samples


def test_unit_range():
    expected = torch.arange(256) / 255
    actual = to_unit_range(torch.arange(256, dtype=torch.uint8))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("width", "height"), [(40, 40), (64, 40), (40, 64), (10, 10), (16, 10)])
def test_resizes_the_shorter_side_antialiased_and_crops_the_center(width, height):
    levels = 96 + _samples.pixels(height, width, 3) // 4  # bicubic overshoots: stay clear of 0 and 255
    side = min(width, height)
    whole = torch.from_numpy(levels).permute(2, 0, 1)[None].float()
    size = (20 * height // side, 20 * width // side)
    resized = F.interpolate(whole, size=size, mode="bicubic", antialias=True)[0]
    top, left = (size[0] - 20) // 2, (size[1] - 20) // 2
    actual = fit_image(Image.fromarray(levels), 20, 3).float()
    torch.testing.assert_close(actual, resized[:, top : top + 20, left : left + 20], atol=1.5, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(1, 300), (300, 1), (1, 1)])
def test_extreme_shapes(width, height):
    assert fit_image(Image.new("RGB", (width, height), "white"), 7, 1).eq(255).all()


def half(mode: str, value) -> Image.Image:
    return Image.new(mode, (4, 4), value)


def palette_image() -> Image.Image:
    image = half("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return image


def transparent_palette_image() -> Image.Image:
    image = palette_image()
    image.info["transparency"] = 1
    return image


def transparent_colour_image() -> Image.Image:
    image = half("RGB", (10, 20, 30))
    image.info["transparency"] = (10, 20, 30)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (half("1", 1), (255, 255, 255)),
        (half("L", 77), (77, 77, 77)),
        (half("RGB", (10, 20, 30)), (10, 20, 30)),
        (half("LA", (77, 255)), (77, 77, 77)),
        (half("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (half("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (half("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
        (half("LA", (0, 51)), (204, 204, 204)),
        (palette_image(), (10, 20, 30)),
        (transparent_palette_image(), (255, 255, 255)),
        (transparent_colour_image(), (255, 255, 255)),
        (half("CMYK", (255, 0, 0, 0)), (0, 255, 255)),
        (half("I;16", 65535), (255, 255, 255)),
        (half("I;16", 257 * 40), (40, 40, 40)),
        (half("I", 257 * 40), (40, 40, 40)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_becomes_colour_and_luma(image, expected):
    assert fit_image(image, 4, 3)[:, 2, 2].tolist() == list(expected)
    luma = sum(weight * level for weight, level in zip((0.299, 0.587, 0.114), expected, strict=True))
    assert abs(fit_image(image, 4, 1)[0, 2, 2].item() - luma) <= 1
