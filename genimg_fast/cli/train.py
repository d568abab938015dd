# SPDX-License-Identifier: MIT
"""`genimg-fast train`"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from genimg_fast.cli import _common


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "train",
        "Train an image generator; a run that was interrupted goes on with --resume.",
        "genimg-fast train dcgan --data photos --out runs/dcgan --image-size 64 --channels 3 --epochs 50\n"
        "genimg-fast train conv_vae --data ~/mnist --out runs/vae --config vae.yaml --lr 5e-4",
    )
    parser.add_argument("model", metavar="MODEL", help="one of `genimg-fast models`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the run")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML or JSON with any settings; the flags below win over it"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR from its last checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    # SUPPRESS: a flag that was not given leaves the setting to the file, or to TrainConfig.
    data = parser.add_argument_group("data", argument_default=argparse.SUPPRESS)
    data.add_argument(
        "--data", required=True, help="digits, photos, or a folder: images, MNIST format or CIFAR-10 binary"
    )
    data.add_argument("--image-size", type=int, metavar="N", help="height and width in pixels (default: 32)")
    data.add_argument("--channels", type=int, choices=(1, 3), help="1 is grey, 3 is colour (default: 1)")
    model = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    model.add_argument(
        "--model-arg", type=_key_value, action="append", dest="model_args", metavar="KEY=VALUE",
        help="a size of the model, such as width=32 or latent=64; may be repeated",
    )  # fmt: skip
    model.add_argument("--beta", type=float, metavar="X", help="weight of a VAE's KL term (default: 1.0)")
    model.add_argument(
        "--gan-loss", choices=("bce", "hinge", "wasserstein", "lsgan"), help="a GAN's objective (default: bce)"
    )
    model.add_argument("--gradient-penalty", type=float, metavar="X", help="weight of WGAN-GP's penalty (default: 0.0)")
    optimisation = parser.add_argument_group("optimisation", argument_default=argparse.SUPPRESS)
    optimisation.add_argument("--epochs", type=int, metavar="N", help="passes over the data (default: 20)")
    optimisation.add_argument("--max-steps", type=int, metavar="N", help="length in steps, in place of epochs")
    optimisation.add_argument(
        "--batch-size", type=int, metavar="N", help="images a process takes at once (default: 64)"
    )
    optimisation.add_argument("--grad-accumulation", type=int, metavar="N", help="batches to a step (default: 1)")
    optimisation.add_argument(
        "--lr", type=float, metavar="X", help="learning rate (default: 1e-3 for a VAE, 2e-4 for a GAN)"
    )
    optimisation.add_argument(
        "--discriminator-lr", type=float, metavar="X", help="that of a GAN's discriminator (default: --lr)"
    )
    optimisation.add_argument(
        "--lr-schedule", choices=("constant", "cosine", "linear"), help="its course (default: constant)"
    )
    optimisation.add_argument(
        "--grad-clip", type=float, metavar="X", help="largest norm of a gradient (default: no limit)"
    )
    optimisation.add_argument(
        "--ema-decay", type=float, metavar="X", help="decay of the averaged weights (default: 0.999)"
    )
    running = parser.add_argument_group("running", argument_default=argparse.SUPPRESS)
    running.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), help="half precision (default: no)")
    running.add_argument("--seed", type=int, metavar="N", help="of weights, order and noise (default: 0)")
    running.add_argument("--num-workers", type=int, metavar="N", help="processes that load images (default: 0)")
    running.add_argument("--log-every", type=int, metavar="N", help="steps between two log entries (default: 10)")
    running.add_argument("--sample-every", type=int, metavar="N", help="steps between two sample grids (default: 500)")
    running.add_argument("--validate-every", type=int, metavar="N", help="steps between two validations (default: 500)")
    running.add_argument(
        "--checkpoint-every", type=int, metavar="N", help="steps between two checkpoints (default: 500)"
    )
    running.add_argument(
        "--early-stopping-patience",
        type=int,
        metavar="N",
        help="stop after so many validations without progress (default: never)",
    )
    running.add_argument("--wandb", action="store_true", help="log to Weights & Biases too, offline (default: False)")
    return parser


_NOT_SETTINGS = {"command", "config", "debug", "quiet", "resume", "run"}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of TrainConfig that were given as arguments."""
    given = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    given["out"] = str(given["out"])
    if "model_args" in given:
        given["model_args"] = dict(given["model_args"])
    return given


def run(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    from genimg_fast.training import TrainConfig, train

    given = settings(args)
    if args.config:
        model_args = given.pop("model_args", {})
        config = TrainConfig.from_file(args.config, **given)
        config = dataclasses.replace(config, model_args={**config.model_args, **model_args})  # which checks them
    else:
        config = TrainConfig.from_dict(given)
    result = train(config, resume=args.resume, progress=not args.quiet)
    if not PartialState().is_main_process:
        return
    print(f"{result.steps} steps, {result.images_per_second:.0f} images/s; best validation metric {result.best_metric}")
    print(f"weights in {args.out / 'checkpoints'}; curves: tensorboard --logdir {args.out / 'logs'}")


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
