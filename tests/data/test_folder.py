# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

from genimg_fast.data import DataError, open_dataset
from tests.data import _samples


def open_folder(folder, **arguments):
    return open_dataset(folder, **{"image_size": 8, "channels": 1, **arguments})


def levels(dataset):
    """What `write_folder` made each image of."""
    return [round(item.mean().item() * 25.5) for item in dataset]


def with_halves(folder, train, test):
    return _samples.write_folder(folder / "train", train), _samples.write_folder(folder / "test", test)


def test_recursive_sorted_and_only_images(tmp_path):
    _samples.write_folder(tmp_path / "train/b/c", 2)
    _samples.write_folder(tmp_path / "train/a", 1)
    _samples.write(tmp_path / "train/b/Z.PNG", _samples.encoded(_samples.solid_image(90)))
    for name in ("notes.txt", "._00.png", ".cache/00.png"):
        _samples.write(tmp_path / "train" / name, b"not an image")
    _samples.write_folder(tmp_path / "test", 1)
    assert levels(open_folder(tmp_path, max_bad_files=0)) == [0, 9, 0, 1]


@pytest.mark.parametrize("name", ["test", "val", "validation", "valid"])
def test_split_folders(tmp_path, name):
    _samples.write_folder(tmp_path / "train", 3)
    _samples.write_folder(tmp_path / name, 1)
    _samples.write_folder(tmp_path / "other", 5)
    assert len(open_folder(tmp_path)) == 3
    assert len(open_folder(tmp_path, split="test")) == 1


def test_split_without_folders(tmp_path):
    _samples.write_folder(tmp_path, 25)
    train, test = (levels(open_folder(tmp_path, split=split)) for split in ("train", "test"))
    assert len(test) == 2
    assert sorted(train + test) == list(range(25))
    assert train == sorted(train)

    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "moved" / path.name)
    assert levels(open_folder(tmp_path / "moved", split="test")) == test  # wherever the folder lies


def test_one_image_serves_both_splits(tmp_path):
    _samples.write_folder(tmp_path, 1)
    assert len(open_folder(tmp_path)) == len(open_folder(tmp_path, split="test")) == 1


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"': no images: looked for \*\.png, .*\*\.gif, here and in the folders below$"):
        open_folder(tmp_path)


def test_bad_files_are_named_and_replaced_by_the_next_good_one(tmp_path):
    (train, _) = with_halves(tmp_path, 5, 1)
    train[1].write_bytes(b"")
    train[2].write_bytes(train[2].read_bytes()[:50])
    train[4].write_bytes(b"hello")
    dataset = open_folder(tmp_path, max_bad_files=3)
    with pytest.warns(UserWarning, match="skipped, bad file") as caught:
        backwards = [dataset[index] for index in (4, 3, 2, 1, 0)]
    assert levels(backwards[::-1]) == [0, 3, 3, 3, 0]
    messages = [str(warning.message) for warning in caught]
    for message, path, number in zip(messages, (train[4], train[2], train[1]), (1, 2, 3), strict=True):
        assert message.startswith(repr(str(path)))
        assert message.endswith(f"(skipped, bad file {number} of at most 3)")
        assert "\n" not in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # each is named once
        assert levels(dataset) == [0, 3, 3, 3, 0]


def test_more_bad_files_than_allowed(tmp_path):
    (train, _) = with_halves(tmp_path, 4, 1)
    train[1].write_bytes(b"")
    train[3].write_bytes(b"")
    dataset = open_folder(tmp_path, max_bad_files=1)
    with pytest.warns(UserWarning, match=r"01.png.*bad file 1 of at most 1"):
        assert levels([dataset[1]]) == [2]
    for _ in range(2):  # and it stays an error
        with pytest.raises(DataError, match=r"03.png': 0 bytes.*\(bad file number 2, max_bad_files is 1\)$"):
            dataset[3]


def test_no_bad_file_allowed(tmp_path):
    (train, _) = with_halves(tmp_path, 2, 1)
    train[0].write_bytes(b"")
    with pytest.raises(DataError, match=r"bad file number 1, max_bad_files is 0"):
        open_folder(tmp_path, max_bad_files=0)[0]


@pytest.mark.filterwarnings("ignore:.*skipped, bad file")
def test_nothing_but_bad_files(tmp_path):
    for path in _samples.write_folder(tmp_path, 1):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its 1 image files can be read"):
        open_folder(tmp_path)[0]


@pytest.mark.filterwarnings("ignore:.*skipped, bad file")
def test_workers_share_the_count(tmp_path):
    (train, _) = with_halves(tmp_path, 8, 1)
    train[2].write_bytes(b"")  # found by one worker
    train[7].write_bytes(b"")  # found by the other
    dataset = open_folder(tmp_path, max_bad_files=2)
    loader = DataLoader(dataset, batch_size=2, num_workers=2)
    for _ in range(2):  # the second epoch's new workers know what the first's found
        assert levels(torch.cat(list(loader))) == [0, 1, 3, 3, 4, 5, 6, 0]
        assert int(dataset._bad.sum()) == 2


def test_a_spawned_worker_shares_the_count(tmp_path):
    (train, _) = with_halves(tmp_path, 3, 1)
    train[1].write_bytes(b"")
    dataset = open_folder(tmp_path, max_bad_files=1)
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="spawn")
    assert levels(torch.cat(list(loader))) == [0, 2, 2]
    assert dataset._bad.tolist() == [False, True, False]


def test_an_error_in_a_worker_is_one_line(tmp_path):
    (train, _) = with_halves(tmp_path, 2, 1)
    train[1].write_bytes(b"")
    loader = DataLoader(open_folder(tmp_path, max_bad_files=0), num_workers=1)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(repr(str(train[1])) + ": 0 bytes")
    assert "\n" not in str(caught.value)


def test_a_link_to_a_file_is_followed_and_one_to_a_folder_is_named(tmp_path):
    (outside,) = _samples.write_folder(tmp_path / "outside", 1)
    inside = tmp_path / "inside"
    _samples.write_folder(inside / "train", 2)
    _samples.write_folder(inside / "test", 1)
    (inside / "train/linked.png").symlink_to(outside)
    (inside / "train/loop").symlink_to(inside)
    with pytest.warns(UserWarning, match=r"train/loop': a link to a folder is not followed"):
        dataset = open_folder(inside)
    assert levels(dataset) == [0, 1, 0]
    (tmp_path / "link").symlink_to(inside / "test")  # the folder that the user named may itself be a link
    assert levels(open_folder(tmp_path / "link")) == [0]


def test_a_broken_link_and_a_folder_named_as_an_image(tmp_path):
    with_halves(tmp_path, 2, 1)
    (tmp_path / "train/broken.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "train/folder.png").mkdir()
    dataset = open_folder(tmp_path)
    assert len(dataset) == 3
    with pytest.warns(UserWarning, match=r"broken.png': No such file or directory \(skipped"):
        assert levels(dataset) == [0, 1, 0]


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    _samples.write_folder(tmp_path / "sub", 1)
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)  # chmod does not stop root
    with pytest.raises(DataError, match=r"sub': cannot list this folder: Permission denied$"):
        open_folder(tmp_path)
