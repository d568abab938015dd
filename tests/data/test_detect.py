# SPDX-License-Identifier: MIT
from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from genimg_fast.data import DataError, open_dataset
from tests.data import _samples


def make(kind: str, folder: Path) -> str:
    """A spec for a data set of the kind that has at least two images in each split."""
    if kind in ("digits", "photos"):
        return kind
    if kind == "images":
        _samples.write_folder(folder, 20)
    for split, name in (("train-images", "data_batch_1"), ("t10k-images", "test_batch")):
        if kind == "idx":
            _samples.write(folder / f"{split}-idx3-ubyte", _samples.idx((3, 28, 28)))
        if kind == "cifar10":
            _samples.write(folder / f"{name}.bin", _samples.cifar_batch(_samples.pixels(3, 3, 32, 32)))
    return str(folder)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["digits", "photos", "images", "idx", "cifar10"])
def test_every_kind_gives_the_same_sort_of_item(tmp_path, kind, channels, split):
    dataset = open_dataset(make(kind, tmp_path / "mine"), split=split, image_size=24, channels=channels)
    assert dataset.kind == kind
    assert dataset.name == (kind if kind in ("digits", "photos") else "mine")
    assert len(dataset) >= 2
    for index in (0, len(dataset) - 1):
        item = dataset[index]
        assert item.shape == (channels, 24, 24)
        assert item.dtype == torch.float32
        assert item.is_contiguous()
        assert item.min() >= 0
        assert item.max() <= 1
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[index], item)
    assert torch.equal(dataset[-1], dataset[len(dataset) - 1])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("kind", ["images", "idx"])
def test_workers_read_what_the_main_process_reads(tmp_path, kind):
    dataset = open_dataset(make(kind, tmp_path), image_size=8, channels=1)
    here = torch.cat(list(DataLoader(dataset, batch_size=4)))
    there = torch.cat(list(DataLoader(dataset, batch_size=4, num_workers=2)))
    assert torch.equal(here, there)


def test_a_folder_is_told_from_a_data_set_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _samples.write_folder(tmp_path / "digits", 1)
    assert open_dataset("digits", image_size=8, channels=1).kind == "digits"
    assert open_dataset("./digits", image_size=8, channels=1).kind == "images"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"^'digit': neither a data set \(digits, photos\) nor an existing folder$"),
        ("", "^'': neither a data set"),
        ("a/missing\nfolder", r"^'a/missing\\nfolder': neither"),
        (__file__, "test_detect.py': not a folder"),
    ],
)
def test_a_spec_that_names_nothing(spec, message):
    with pytest.raises(DataError, match=message):
        open_dataset(spec, image_size=8, channels=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spec": 3}, TypeError, "spec must be a str or a path, got int"),
        ({"split": "val"}, ValueError, "split must be 'train' or 'test', got 'val'"),
        ({"image_size": 0}, ValueError, "image_size must be from 1 to 8192, got 0"),
        ({"image_size": -3}, ValueError, "image_size must be from 1 to 8192, got -3"),
        ({"image_size": 8193}, ValueError, "image_size must be from 1 to 8192, got 8193"),
        ({"image_size": 32.0}, TypeError, "image_size must be an int, got float"),
        ({"channels": 2}, ValueError, r"channels must be 1 \(luma\) or 3 \(RGB\), got 2"),
        ({"channels": True}, TypeError, "channels must be an int, got bool"),
        ({"max_bad_files": -1}, ValueError, "max_bad_files must be 0 or more, got -1"),
    ],
)
def test_bad_arguments_get_one_clear_line(arguments, error, message):
    with pytest.raises(error, match=f"^open_dataset: {message}$"):
        open_dataset(**{"spec": "digits", "image_size": 8, "channels": 1, **arguments})


def test_a_data_set_too_large_for_memory_is_refused_before_it_is_made():
    with pytest.raises(DataError, match=r"^digits: \d+ bytes in memory; at most 4294967296 are allowed"):
        open_dataset("digits", image_size=8192, channels=1)
