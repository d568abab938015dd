# SPDX-License-Identifier: MIT
"""`genimg-fast sample`"""

from __future__ import annotations

import argparse

from genimg_fast.cli import _common


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "sample",
        "Write a grid of images that a trained model makes up.",
        "genimg-fast sample runs/dcgan --n 64 --out samples.png",
    )
    _common.add_run(parser)
    output = parser.add_argument_group("output")
    _common.add_out(output)
    output.add_argument("--n", type=_common.positive, default=64, help="number of images (default: %(default)s)")
    output.add_argument("--columns", type=_common.positive, help="images in a row (default: a square grid)")
    running = parser.add_argument_group("running")
    _common.add_seed(running)
    _common.add_device(running)
    return parser


BATCH = 256  # bounds the memory that many samples take


def run(args: argparse.Namespace) -> None:
    import torch

    from genimg_fast import Sampler
    from genimg_fast.data import save_grid

    model = _common.load(args)
    generator = torch.Generator().manual_seed(args.seed)  # on the CPU: the same images on every device
    sampler = Sampler(model, min(BATCH, args.n), generator=generator)
    save_grid(torch.cat(list(sampler.stream(args.n))), args.out, args.columns)
    print(f"{args.n} samples of {model.name} in {args.out}")
