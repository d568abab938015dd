# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from genimg_fast.data import DataError, decode
from genimg_fast.data.decode import read_image
from tests.data import _samples


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True}), ("BMP", {}), ("GIF", {})],
)
def test_allowed_formats_are_told_by_content(tmp_path, format, options, name):
    path = _samples.write(tmp_path / name, _samples.encoded(_samples.solid_image(120), format, **options))
    assert (read_image(path, 8, 3).int() - 120).abs().max() <= 1


@pytest.mark.parametrize("format", ["TIFF", "PPM", "ICO", "EPS", "TGA", "PDF"])
def test_other_formats_are_refused_even_under_an_allowed_name(tmp_path, format):
    path = _samples.write(tmp_path / "a.png", _samples.encoded(_samples.solid_image(120), format))
    with pytest.raises(DataError, match=r"a.png': not an image of an allowed format \(PNG, JPEG, WEBP, BMP, GIF\)$"):
        read_image(path, 8, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "MPO"])
def test_the_first_frame_of_several(tmp_path, format):
    frames = [_samples.solid_image(level) for level in (200, 20)]
    data = _samples.encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert (read_image(_samples.write(tmp_path / "a.img", data), 8, 3).int() - 200).abs().max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    # EXIF 2.3, table 6: what to do to stored pixels to see them upright
    upright = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation]
    stored = _samples.pixels(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _samples.write(tmp_path / "a.png", _samples.encoded(Image.fromarray(stored), exif=exif))
    assert np.array_equal(read_image(path, 8, 3).permute(1, 2, 0).numpy(), upright(stored))


def test_16_bit_png_is_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    path = _samples.write(tmp_path / "a.png", _samples.encoded(Image.fromarray(ramp)))
    assert (read_image(path, 8, 1)[0].numpy() == (ramp / 257).round()).all()


@pytest.mark.parametrize("size", [20, 64, 512])
def test_a_jpeg_decoded_at_reduced_size_keeps_its_detail(tmp_path, size):
    picture = Image.fromarray(_samples.pixels(8, 8, 3)).resize((size, size), Image.Resampling.BICUBIC)
    path = _samples.write(tmp_path / "a.jpg", _samples.encoded(picture, "JPEG", quality=95, subsampling=0))
    expected = np.array(picture.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    torch.testing.assert_close(read_image(path, 16, 3).int(), torch.from_numpy(expected).int(), atol=8, rtol=0)


WHOLE = {format: _samples.encoded(_samples.random_image(), format) for format in decode.FORMATS}


@pytest.mark.parametrize("format", decode.FORMATS)
def test_truncated(tmp_path, format):
    path = _samples.write(tmp_path / "a.png", WHOLE[format][: len(WHOLE[format]) // 2])
    with pytest.raises(DataError, match=r"^'.*a.png': .+$"):
        read_image(path, 8, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes; image files have from 1 to 536870912"),
        (b"no image at all", "not an image of an allowed format"),
        (_samples.png_header(2**31 - 1, 2**31 - 1), "broken image .DecompressionBombError"),
        (_samples.png_header(8193, 8192), r"8193x8192 pixels; at most 67108864 are allowed"),
        (_samples.png_header(8192, 8192), "truncated"),  # the largest allowed: decoding starts
    ],
)
def test_hostile_content(tmp_path, data, message):
    with pytest.raises(DataError, match=rf"^'.*a.png': .*{message}"):
        read_image(_samples.write(tmp_path / "a.png", data), 8, 3)


def test_the_pixel_limit_is_ours_whatever_the_user_set_in_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = _samples.write(tmp_path / "a.png", _samples.png_header(2**31 - 1, 2**31 - 1))
    with pytest.raises(DataError, match="2147483647x2147483647 pixels"):
        read_image(path, 8, 3)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(WHOLE["WEBP"])
    os.truncate(path, decode.MAX_FILE_BYTES + 1)  # sparse: takes no space
    with pytest.raises(DataError, match="536870913 bytes; image files have from 1 to 536870912"):
        read_image(path, 8, 3)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png': not a regular file"):
        read_image(tmp_path / "a.png", 8, 3)


def test_missing_and_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "a\n.png"
    with pytest.raises(DataError, match=r"a\\n.png': No such file or directory$"):
        read_image(path, 8, 3)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    path.write_bytes(WHOLE["PNG"])
    monkeypatch.setattr("builtins.open", refuse)  # chmod does not stop root
    with pytest.raises(DataError, match=r"a\\n.png': Permission denied$"):
        read_image(path, 8, 3)


@pytest.mark.parametrize("format", decode.FORMATS)
def test_any_damage_is_an_image_or_one_line(tmp_path, format):
    random = np.random.default_rng(0)
    path = tmp_path / "a.png"
    refusals = []
    for _ in range(150):
        data = bytearray(WHOLE[format])
        for position in random.integers(0, min(len(data), 200), 3):
            data[position] = random.integers(256)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own, about broken EXIF and large sizes
                assert read_image(path, 8, 3).shape == (3, 8, 8)
        except DataError as error:
            refusals.append(str(error))
    assert refusals
    assert not [message for message in refusals if "\n" in message]
