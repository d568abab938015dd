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
    output.add_argument(
        "--n", type=_common.positive, metavar="N", default=64, help="number of images (default: %(default)s)"
    )
    output.add_argument(
        "--columns", type=_common.positive, metavar="N", help="images in a row (default: a square grid)"
    )
    running = parser.add_argument_group("running")
    _common.add_seed(running)
    _common.add_device(running)
    return parser


def run(args: argparse.Namespace) -> None:
    import torch

    from genimg_fast import Sampler
    from genimg_fast.data import save_grid

    model = _common.load(args)
    _common.check_fits("--n", args.n, model.image_shape[1:], args.columns)
    generator = torch.Generator().manual_seed(args.seed)  # on the CPU: the same images on every device
    sampler = Sampler(model, min(_common.BATCH, args.n), generator=generator)
    with _common.collected(sampler.stream(args.n), args.n) as images:
        save_grid(images, args.out, args.columns)
    print(f"{args.n} samples of {_common.described(model, args.model)} in {args.out}")
