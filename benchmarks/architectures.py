# SPDX-License-Identifier: MIT
"""What `fuse` gives models as others write them: those of tests/architectures, about as wide as in their papers.

Against eager PyTorch in both memory orders; compilers, which take minutes for such models, are in `genimg-fast bench`.  For ten
minutes on a machine that does nothing else:

    python -m benchmarks.architectures --out benchmarks/results/<machine>-architectures.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from genimg_fast._files import write_atomically
from genimg_fast.benchmark import machine, suite
from genimg_fast.benchmark.models import TOLERANCE_OF_TRAINING, inference, settle_statistics
from genimg_fast.benchmark.runtimes import Runtime
from genimg_fast.benchmark.workloads import Inputs, Prepared, tolerances
from tests.architectures import adversarial, residual, translation


class Architecture(NamedTuple):
    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    """Of one image, or whatever the model makes one of."""


ARCHITECTURES = {
    "pix2pix generator, U-Net 256x256": Architecture(
        lambda: translation.UnetGenerator(num_downs=8, ngf=64), (3, 256, 256)
    ),
    "pix2pix discriminator, PatchGAN 256x256": Architecture(
        lambda: translation.NLayerDiscriminator(input_nc=6, ndf=64, n_layers=3), (6, 256, 256)
    ),
    "CycleGAN generator, 6 blocks, 128x128": Architecture(
        lambda: translation.ResnetGenerator(ngf=64, n_blocks=6), (3, 128, 128)
    ),
    "segmentation U-Net, 128x128": Architecture(lambda: translation.UNet(width=64), (3, 128, 128)),
    "SRGAN generator, 24x24 to 48x48": Architecture(
        lambda: residual.SRGANGenerator(width=64, residual_blocks=16), (3, 24, 24)
    ),
    "resize-convolution generator, 64x64": Architecture(
        lambda: adversarial.ResizeGenerator(nz=100, ngf=64, size=64), (100,)
    ),
    "StarGAN v2 discriminator, 128x128": Architecture(
        lambda: residual.StarGANDiscriminator(width=64, widest=512, size=128), (3, 128, 128)
    ),
    "SNGAN generator, 8x8": Architecture(lambda: residual.SNGANGenerator(nz=128, ngf=256), (128,)),
}


@dataclass(frozen=True)
class Pass:
    """Inference, or forward and backward in training, of one of `ARCHITECTURES`."""

    architecture: str
    images: int
    training: bool

    def prepare(
        self, runtime: Runtime, dtype: torch.dtype = torch.float32, noise: torch.Tensor | None = None
    ) -> Prepared:
        build, shape = ARCHITECTURES[self.architecture]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build().to(runtime.device, dtype)
        draw = Inputs(runtime, dtype)
        if not self.training:
            settle_statistics(model, draw.randn(2, *shape))
            return inference(model, draw.randn(self.images, *shape), runtime)
        x = draw.randn(self.images, *shape)
        upstream = draw.randn(*model.train()(x).shape)
        model = runtime.convert(model)
        (names, parameters), run = zip(*model.named_parameters(), strict=True), runtime.compile(model)
        # not compared: that of a bias before a normalisation, which is 0 but for rounding
        compared = [i for i, parameter in enumerate(parameters) if parameter.dim() > 1]

        def call() -> Sequence[Any]:
            images = run(x)
            gradients = torch.autograd.grad(images, parameters, upstream)
            return (images, *(gradients[i] for i in compared))

        of_gradients = {f"gradient of {names[i]}": TOLERANCE_OF_TRAINING for i in compared}
        return Prepared(call, tolerances("images") | of_gradients)


def _rows(architecture: str, images: int, images_of_training: int) -> list[suite.Row]:
    return [
        suite.Row(
            f"{architecture}, {mode}, B={n}", Pass(architecture, n, mode == "training"), ("eager", "channels_last")
        )
        for mode, n in (("eval", images), ("training", images_of_training))
    ]


ROWS = [
    *_rows("pix2pix generator, U-Net 256x256", 1, 1),
    *_rows("pix2pix discriminator, PatchGAN 256x256", 1, 1),
    *_rows("CycleGAN generator, 6 blocks, 128x128", 1, 1),
    *_rows("segmentation U-Net, 128x128", 1, 4),
    *_rows("SRGAN generator, 24x24 to 48x48", 1, 16),
    *_rows("resize-convolution generator, 64x64", 16, 64),
    *_rows("StarGAN v2 discriminator, 128x128", 1, 8),
    *_rows("SNGAN generator, 8x8", 16, 64),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--match", default="", help="only what has this in its name")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing for each row, about")
    arguments = parser.parse_args()
    threads = machine.physical_cores()
    described = machine.describe(threads)
    rows = [row for row in ROWS if arguments.match in row.name]
    measured = suite.run(
        rows,
        (),
        threads=threads,
        seconds=arguments.seconds,
        isa=None,
        device="cpu",
        say=lambda text: print(text, flush=True),
    )
    report = {"machine": described, "device": "cpu", "suite": "architectures", **measured}
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(arguments.out, lambda file: file.write(text.encode()))
    return 1 if any("ours" in row["failed"] for row in report["rows"]) else 0


if __name__ == "__main__":
    from benchmarks import architectures  # by which name the workers find what is here

    sys.exit(architectures.main())
