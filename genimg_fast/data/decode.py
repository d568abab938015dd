# SPDX-License-Identifier: MIT
"""Reads one image file that nobody has vetted."""

from __future__ import annotations

import os
import stat

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from genimg_fast.data.errors import DataError, quoted
from genimg_fast.data.transforms import fit_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Formats that are decoded, told by content and not by file name; the first frame of those that have several.

TIFF is left out: its many codecs are the largest body of native parsing code in Pillow, for the format least seen in
image data sets.
"""

MAX_PIXELS = 8192 * 8192
"""Larger images are refused from their header, before memory is spent on them. Pillow's own limit only warns."""

MAX_FILE_BYTES = 2**29
"""Larger files are refused unread: 8 bytes for each of `MAX_PIXELS`, what the widest pixel takes uncompressed."""


def read_image(path: str | os.PathLike[str], image_size: int, channels: int) -> torch.Tensor:
    """Decodes the file, turns it upright by its EXIF orientation, and fits it (see `transforms.fit_image`).

    Returns:
        A uint8 tensor (channels, image_size, image_size).

    Raises:
        DataError: the file cannot be read, is empty, truncated or no image of `FORMATS`, or is larger than
            `MAX_FILE_BYTES` or `MAX_PIXELS`.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise DataError(f"{quoted(path)}: not a regular file")
        if not 0 < status.st_size <= MAX_FILE_BYTES:
            raise DataError(f"{quoted(path)}: {status.st_size} bytes; image files have from 1 to {MAX_FILE_BYTES}")
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{quoted(path)}: {image.width}x{image.height} pixels; at most {MAX_PIXELS} are allowed"
                )
            # JPEG alone: decode at 1/2, 1/4 or 1/8 size where that still leaves the resize something to average.
            image.draft(None, (2 * image_size, 2 * image_size))
            ImageOps.exif_transpose(image, in_place=True)
            return fit_image(image, image_size, channels)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{quoted(path)}: not an image of an allowed format ({', '.join(FORMATS)})") from error
    except OSError as error:
        raise DataError(f"{quoted(path)}: {_one_line(error.strerror or error)}") from error
    except Exception as error:  # on hostile bytes Pillow's parsers raise nearly anything, MemoryError included
        raise DataError(f"{quoted(path)}: broken image ({type(error).__name__}: {_one_line(error)})") from error


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
