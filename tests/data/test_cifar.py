# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
import torch

from genimg_fast.data import DataError, open_dataset
from tests.data import _samples


def test_batches_in_order_and_without_labels(tmp_path):
    images = _samples.pixels(5, 3, 32, 32)
    _samples.write(tmp_path / "data_batch_2.bin", _samples.cifar_batch(images[2:]))
    _samples.write(tmp_path / "data_batch_1.bin", _samples.cifar_batch(images[:2]))
    _samples.write(tmp_path / "batches.meta.txt", b"airplane\n")
    dataset = open_dataset(tmp_path, image_size=32, channels=3)
    assert dataset.kind == "cifar10"
    assert torch.equal(torch.stack(list(dataset)), torch.from_numpy(images) / 255)
    with pytest.raises(DataError, match=r"no file for split 'test': test_batch.bin$"):
        open_dataset(tmp_path, split="test", image_size=32, channels=3)


def test_test_batch(tmp_path):
    _samples.write(tmp_path / "test_batch.bin", _samples.cifar_batch(_samples.pixels(2, 3, 32, 32)))
    assert len(open_dataset(tmp_path, split="test", image_size=16, channels=1)) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes; a CIFAR-10 batch has a multiple of 3073, and at least one$"),
        (bytes(3072), "3072 bytes; a CIFAR-10 batch has a multiple of 3073"),
        (bytes(3073 * 4 + 1), "12293 bytes; a CIFAR-10 batch has a multiple of 3073"),
        (np.full(3073, 200, dtype=np.uint8).tobytes(), "label 200; CIFAR-10 labels are 0 to 9$"),
    ],
)
def test_broken_batches(tmp_path, data, message):
    _samples.write(tmp_path / "data_batch_1.bin", _samples.cifar_batch(_samples.pixels(1, 3, 32, 32)))
    _samples.write(tmp_path / "data_batch_2.bin", data)
    with pytest.raises(DataError, match=rf"^'.*data_batch_2.bin': {message}"):
        open_dataset(tmp_path, image_size=32, channels=3)


def test_unreadable(tmp_path, monkeypatch):
    _samples.write(tmp_path / "data_batch_1.bin", bytes(3073))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("numpy.fromfile", refuse)  # chmod does not stop root
    with pytest.raises(DataError, match=r"data_batch_1.bin': Permission denied$"):
        open_dataset(tmp_path, image_size=32, channels=3)
