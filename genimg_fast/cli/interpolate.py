# SPDX-License-Identifier: MIT
"""`genimg-fast interpolate`"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from genimg_fast.cli import _common

if TYPE_CHECKING:
    import torch

    from genimg_fast.models import ImageModel


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "interpolate",
        "Write rows of images on the way from one random latent vector to another.",
        "genimg-fast interpolate runs/dcgan --out interpolation.png --steps 12 --rows 6",
    )
    _common.add_run(parser)
    output = parser.add_argument_group("output")
    _common.add_out(output)
    output.add_argument(
        "--steps", type=_common.positive, metavar="N", default=10, help="images in a row (default: %(default)s)"
    )
    output.add_argument(
        "--rows", type=_common.positive, metavar="N", default=6, help="pairs of latent vectors (default: %(default)s)"
    )
    running = parser.add_argument_group("running")
    _common.add_seed(running)
    _common.add_device(running)
    return parser


def run(args: argparse.Namespace) -> None:
    from genimg_fast.data import save_grid

    model = _common.load(args)
    count = args.rows * args.steps
    _common.check_fits("--rows times --steps", count, model.image_shape[1:], args.steps)
    with _common.collected(interpolations(model, args.rows, args.steps, args.seed), count) as images:
        save_grid(images, args.out, args.steps)
    print(
        f"{args.rows} interpolations of {args.steps} steps through {_common.described(model, args.model)} in {args.out}"
    )


def interpolations(model: ImageModel, rows: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of the rows * steps images, (N, C, H, W) in [0, 1], row by row."""
    import torch

    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same images on every device
    starts, ends = torch.randn(2, rows, *model.latent_shape, generator=generator)
    z = torch.cat([slerp(start, end, steps) for start, end in zip(starts, ends, strict=True)])
    parameter = next(model.parameters())
    for part in z.split(_common.BATCH):
        with torch.inference_mode():
            images = model.latent_to_images(part.to(parameter))
        yield images


def slerp(start: torch.Tensor, end: torch.Tensor, steps: int) -> torch.Tensor:
    """Spherical interpolation (Shoemake 1985), ends included: (steps, *start.shape).

    In high dimensions Gaussian vectors lie near a sphere.  A straight line leaves it and passes through points that the
    prior never draws (White 2016, arXiv:1609.04468).
    """
    import torch

    t = torch.linspace(0, 1, steps, device=start.device).view(-1, *[1] * start.dim())
    cosine = torch.nn.functional.cosine_similarity(start.flatten(), end.flatten(), dim=0)
    angle = cosine.clamp(-1, 1).acos()
    if angle.sin() < 1e-4:  # parallel: the straight line is the arc, up to rounding
        return torch.lerp(start, end, t)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / angle.sin()
