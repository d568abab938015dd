# SPDX-License-Identifier: MIT
"""`genimg-fast export`"""

from __future__ import annotations

import argparse
from pathlib import Path

from genimg_fast.cli import _common

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "export",
        "Write the part of a trained model that makes images as a file for other runtimes, in standard operators.",
        "genimg-fast export runs/dcgan --format onnx --out dcgan.onnx\n"
        "genimg-fast export runs/dcgan --format torch-export --out dcgan.pt2",
    )
    _common.add_run(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=tuple(SUFFIXES), required=True, help="ONNX, or torch.export's archive")
    output.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .onnx or .pt2 file to write")
    return parser


def run(args: argparse.Namespace) -> None:
    import logging

    from genimg_fast.models.export import export
    from genimg_fast.training import load_model

    suffix = SUFFIXES[args.format]
    if args.out.suffix != suffix:
        raise _common.CommandError(f"--out must end in {suffix} for --format {args.format}, got {str(args.out)!r}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that no model here needs
    model = load_model(args.model).float()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    export(model, args.out, args.format)
    latents, images = (", ".join(("N", *map(str, shape))) for shape in (model.latent_shape, model.image_shape))
    print(
        f"{_common.described(model, args.model)} in {args.out}: latents ({latents}) from N(0, 1) to images ({images}) in [0, 1]"
    )
