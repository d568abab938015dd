# SPDX-License-Identifier: MIT
from __future__ import annotations

import tracemalloc

import pytest
import torch

from genimg_fast.data import DataError, open_dataset
from genimg_fast.data.idx import FILE_NAMES, read_idx_images
from tests.data import _samples


@pytest.mark.parametrize("name", FILE_NAMES["train"])
def test_images_come_back_under_every_name(tmp_path, name):
    images = _samples.pixels(3, 5, 5)
    _samples.write(tmp_path / name, _samples.idx((3, 5, 5), images.tobytes()))
    dataset = open_dataset(tmp_path, image_size=5, channels=1)
    assert dataset.kind == "idx"
    assert torch.equal(torch.stack(list(dataset)), torch.from_numpy(images)[:, None] / 255)
    with pytest.raises(
        DataError, match=r"no file for split 'test': t10k-images-idx3-ubyte, .*t10k-images.idx3-ubyte.gz$"
    ):
        open_dataset(tmp_path, split="test", image_size=5, channels=1)


def test_splits(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        _samples.write(tmp_path / FILE_NAMES[split][0], _samples.idx((count, 6, 4)))
    assert [len(open_dataset(tmp_path, split=s, image_size=4, channels=3)) for s in ("train", "test")] == [4, 2]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file of images: it must start with 00 00 08 03, got nothing$"),
        (_samples.idx((2, 2, 2))[:10], "ends within its header of 16 bytes$"),
        (b"\x89PNG" + bytes(100), "not an IDX file of images.* got 89 50 4e 47"),
        (_samples.idx((2, 2, 2), bytes(32), type_code=0x0D), "elements are float32; only uint8 is allowed"),
        (_samples.idx((2, 2, 2), bytes(32), type_code=0x77), "not an IDX file of images.* got 00 00 77 03"),
        (_samples.idx((100,)), r"1 dimensions \(a labels file\?\); images have 3 \(count, height, width\)"),
        (_samples.idx((2, 2, 2, 3)), "4 dimensions; images have 3"),
        (_samples.idx((0, 28, 28)), "header says 0 x 28 x 28; each must be at least 1"),
        (_samples.idx((3, 4, 4), bytes(47)), "header says 3 x 4 x 4 = 48 bytes, the file has fewer"),
        (_samples.idx((3, 4, 4), bytes(49)), "header says 3 x 4 x 4 = 48 bytes, the file has more"),
        (_samples.idx((2**32 - 1,) * 3, bytes(48)), "header says 4294967295 x .* bytes, the file has fewer"),
        (_samples.idx((1000, 1000, 1000), bytes(48)), "header says .* = 1000000000 bytes, the file has fewer"),
    ],
)
def test_broken_files_get_one_line_and_no_memory(tmp_path, data, message, suffix):
    path = _samples.write(tmp_path / f"train-images-idx3-ubyte{suffix}", data)
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"^'.*train-images-idx3-ubyte{suffix}': {message}"):
        read_idx_images(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_a_compressed_file_expands_no_further_than_its_header_says(tmp_path):
    path = _samples.write(tmp_path / "train-images-idx3-ubyte.gz", _samples.idx((1, 2, 2), bytes(200_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match="header says 1 x 2 x 2 = 4 bytes, the file has more"):
        read_idx_images(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_more_than_memory_may_hold_is_refused_unread(tmp_path):
    path = _samples.write(tmp_path / "train-images-idx3-ubyte", _samples.idx((2**16, 2**8, 2**8 + 1), b""))
    with open(path, "r+b") as file:
        file.truncate(16 + 2**16 * 2**8 * (2**8 + 1))  # sparse: takes no space
    with pytest.raises(DataError, match="4311744512 bytes in memory; at most 4294967296"):
        read_idx_images(path)


def test_broken_compression(tmp_path):
    path = _samples.write(tmp_path / "train-images-idx3-ubyte.gz", _samples.idx((3, 28, 28)))
    whole = path.read_bytes()
    wrong_checksum = whole[:-8] + bytes(4) + whole[-4:]
    wrong_block = whole[:10] + b"\x07" + whole[11:]  # deflate block type 3 does not exist
    for data in (whole[:-20], whole[:5], wrong_checksum, wrong_block, b"not gzip at all"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"^'.*train-images-idx3-ubyte.gz': .+$"):
            read_idx_images(path)


def test_unreadable(tmp_path, monkeypatch):
    path = _samples.write(tmp_path / "train-images-idx3-ubyte", _samples.idx((1, 2, 2)))

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # chmod does not stop root
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte': Permission denied$"):
        read_idx_images(path)
