# SPDX-License-Identifier: MIT
"""`genimg-fast reconstruct`"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from genimg_fast.cli import _common

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from genimg_fast.models import VAE


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "reconstruct",
        "Write images beside what a trained VAE makes of them: each row of originals has its reconstructions below.",
        "genimg-fast reconstruct runs/vae --data digits --out reconstructions.png",
    )
    _common.add_run(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", required=True, help="digits, photos, or a folder: images, MNIST format or CIFAR-10 binary"
    )
    data.add_argument(
        "--split", choices=("train", "test"), default="test", help="which part of it (default: %(default)s)"
    )
    output = parser.add_argument_group("output")
    _common.add_out(output)
    output.add_argument(
        "--n", type=_common.positive, metavar="N", default=32, help="number of images (default: %(default)s)"
    )
    output.add_argument(
        "--columns", type=_common.positive, metavar="N", default=16, help="images in a row (default: %(default)s)"
    )
    running = parser.add_argument_group("running")
    _common.add_device(running)
    return parser


def run(args: argparse.Namespace) -> None:
    from genimg_fast.data import open_dataset, save_grid
    from genimg_fast.data.grid import PADDING
    from genimg_fast.models import VAE

    model = _common.load(args)
    if not isinstance(model, VAE):
        raise _common.CommandError(
            f"{args.model} holds {model.name}, a GAN: it has no encoder, so nothing to reconstruct with"
        )
    channels, image_size, _ = model.image_shape
    dataset = open_dataset(args.data, split=args.split, image_size=image_size, channels=channels)
    count = min(args.n, len(dataset))
    # each image with its reconstruction below
    _common.check_fits("--n", count, (2 * image_size + PADDING, image_size), args.columns)
    columns = min(args.columns, count)
    with _common.collected(_pairs(model, dataset, count), count) as pairs:
        originals, reconstructions = pairs.unbind(1)
        save_grid(interleave(originals, reconstructions, columns), args.out, columns)
    print(f"{count} images of {args.data} and what {_common.described(model, args.model)} makes of them in {args.out}")


def _pairs(model: VAE, dataset: Dataset, count: int) -> Iterator[torch.Tensor]:
    """Batches (N, 2, C, H, W) of the first `count` images and what the model makes of them."""
    import torch

    parameter = next(model.parameters())
    for start in range(0, count, _common.BATCH):
        originals = torch.stack([dataset[i] for i in range(start, min(start + _common.BATCH, count))])
        yield torch.stack((originals, model.reconstruct(originals.to(parameter)).to(originals)), 1)


def interleave(originals: torch.Tensor, reconstructions: torch.Tensor, columns: int) -> torch.Tensor:
    """The images of a grid whose rows alternate between originals and their reconstructions."""
    import torch

    missing = -len(originals) % columns  # the last row is filled up with black
    rows = [
        torch.cat([images, images.new_zeros(missing, *images.shape[1:])]).unflatten(0, (-1, columns))
        for images in (originals, reconstructions)
    ]
    return torch.stack(rows, dim=1).flatten(0, 2)
