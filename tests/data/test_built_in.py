# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
import torch

from genimg_fast.data import open_dataset, photos


def items(spec, split, **arguments):
    return torch.stack(list(open_dataset(spec, split=split, **arguments)))


def test_digits_keep_their_grey_levels_and_split_by_class():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    splits = {split: items("digits", split, image_size=8, channels=1) for split in ("train", "test")}
    assert {split: len(images) for split, images in splits.items()} == {"train": 1442, "test": 355}

    # Every image is in one split, at its own level: put both together again and compare as sets.
    levels = torch.cat(list(splits.values())).mul(16).round().to(torch.uint8).numpy()
    assert sorted(image.tobytes() for image in levels) == sorted(i.astype(np.uint8).tobytes() for i in bunch.images)

    label_of = {
        image.astype(np.uint8).tobytes(): label for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    for images in splits.values():
        labels = [label_of[image.tobytes()] for image in images.mul(16).round().to(torch.uint8).numpy()]
        shares = np.bincount(labels, minlength=10) / len(images)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_no_pixel_of_a_photograph_is_in_both_splits():
    where = np.arange(427 * 640).reshape(427, 640, 1)  # a photograph whose pixels say where they are
    seen = {}
    for split in ("train", "test"):
        crops = list(photos._crops(photos._region(where, split)))
        assert {crop.shape[:2] for crop in crops} == {(size, size) for size in photos.CROP_SIZES}
        seen[split] = set(np.concatenate([crop.ravel() for crop in crops]).tolist())
    assert not seen["train"] & seen["test"]
    assert len(seen["train"]) + len(seen["test"]) > 0.9 * where.size


def test_photos_are_the_same_each_time_and_in_colour():
    first, second = (items("photos", "test", image_size=16, channels=3) for _ in range(2))
    assert torch.equal(first, second)
    assert (first[:, 0] - first[:, 2]).abs().mean() > 0.05
    assert len(first.unique(dim=0)) > 0.9 * len(first)


@pytest.mark.parametrize("spec", ["digits", "photos"])
def test_grey_is_the_luma_of_the_colours(spec):
    grey, colour = (items(spec, "test", image_size=16, channels=channels) for channels in (1, 3))
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(grey, luma, atol=3 / 255, rtol=0)
