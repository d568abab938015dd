# SPDX-License-Identifier: MIT
"""`genimg-fast reconstruct`"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from genimg_fast.cli import _common

if TYPE_CHECKING:
    import torch


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
    output.add_argument("--n", type=_common.positive, default=32, help="number of images (default: %(default)s)")
    output.add_argument("--columns", type=_common.positive, default=16, help="images in a row (default: %(default)s)")
    running = parser.add_argument_group("running")
    _common.add_device(running)
    return parser


def run(args: argparse.Namespace) -> None:
    import torch

    from genimg_fast.data import open_dataset, save_grid
    from genimg_fast.models import VAE

    model = _common.load(args)
    if not isinstance(model, VAE):
        raise _common.CommandError(
            f"{args.model} holds {model.name}, a GAN: it has no encoder, so nothing to reconstruct with"
        )
    channels, image_size, _ = model.image_shape
    dataset = open_dataset(args.data, split=args.split, image_size=image_size, channels=channels)
    count = min(args.n, len(dataset))
    originals = torch.stack([dataset[i] for i in range(count)])
    reconstructions = model.reconstruct(originals.to(next(model.parameters()))).cpu()
    columns = min(args.columns, count)
    save_grid(interleave(originals, reconstructions, columns), args.out, columns)
    print(f"{count} images of {args.data} and their reconstructions in {args.out}")


def interleave(originals: torch.Tensor, reconstructions: torch.Tensor, columns: int) -> torch.Tensor:
    """The images of a grid whose rows alternate between originals and their reconstructions."""
    import torch

    missing = -len(originals) % columns  # the last row is filled up with black
    rows = [
        torch.cat([images, images.new_zeros(missing, *images.shape[1:])]).unflatten(0, (-1, columns))
        for images in (originals, reconstructions)
    ]
    return torch.stack(rows, dim=1).flatten(0, 2)
