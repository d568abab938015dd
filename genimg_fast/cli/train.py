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
    # SUPPRESS: what was not given is left to the file, or to TrainConfig.  It also checks and converts what was.
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", default=argparse.SUPPRESS, help="one of `genimg-fast models`"
    )
    parser.add_argument("--out", default=argparse.SUPPRESS, metavar="DIR", help="folder for the run")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML or JSON with any settings; what is given here wins over it"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in DIR from its last checkpoint, with its settings"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    data = parser.add_argument_group("data", argument_default=argparse.SUPPRESS)
    data.add_argument("--data", help="digits, photos, or a folder: images, MNIST format or CIFAR-10 binary")
    data.add_argument("--image-size", metavar="N", help="height and width in pixels (default: 32)")
    data.add_argument("--channels", metavar="N", help="1 is grey, 3 is colour (default: 1)")
    data.add_argument("--max-bad-files", metavar="N", help="unreadable images that are skipped (default: 10)")
    model = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    model.add_argument(
        "--model-arg", type=_key_value, action="append", dest="model_args", metavar="KEY=VALUE",
        help="a size of the model, such as width=32 or latent=64; may be repeated",
    )  # fmt: skip
    model.add_argument("--beta", metavar="X", help="weight of a VAE's KL term (default: 1.0)")
    model.add_argument(
        "--gan-loss", choices=("bce", "hinge", "wasserstein", "lsgan"), help="a GAN's objective (default: bce)"
    )
    model.add_argument("--gradient-penalty", metavar="X", help="weight of WGAN-GP's penalty (default: 0.0)")
    optimisation = parser.add_argument_group("optimisation", argument_default=argparse.SUPPRESS)
    optimisation.add_argument("--epochs", metavar="N", help="passes over the data (default: 20)")
    optimisation.add_argument("--max-steps", metavar="N", help="length in steps, in place of epochs")
    optimisation.add_argument("--batch-size", metavar="N", help="images a process takes at once (default: 64)")
    optimisation.add_argument("--grad-accumulation", metavar="N", help="batches to a step (default: 1)")
    optimisation.add_argument("--lr", metavar="X", help="learning rate (default: 1e-3 for a VAE, 2e-4 for a GAN)")
    optimisation.add_argument("--discriminator-lr", metavar="X", help="that of a GAN's discriminator (default: --lr)")
    optimisation.add_argument(
        "--lr-schedule", choices=("constant", "cosine", "linear"), help="its course (default: constant)"
    )
    optimisation.add_argument("--grad-clip", metavar="X", help="largest norm of a gradient (default: no limit)")
    optimisation.add_argument(
        "--ema-decay", metavar="X", help="decay of the averaged weights; null: no average (default: 0.999)"
    )
    running = parser.add_argument_group("running", argument_default=argparse.SUPPRESS)
    running.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), help="half precision (default: no)")
    running.add_argument("--seed", metavar="N", help="of weights, order and noise (default: 0)")
    running.add_argument("--num-workers", metavar="N", help="processes that load images (default: 0)")
    running.add_argument("--log-every", metavar="N", help="steps between two log entries (default: 10)")
    running.add_argument("--sample-every", metavar="N", help="steps between two sample grids (default: 500)")
    running.add_argument("--validate-every", metavar="N", help="steps between two validations (default: 500)")
    running.add_argument("--checkpoint-every", metavar="N", help="steps between two checkpoints (default: 500)")
    running.add_argument(
        "--early-stopping-patience",
        metavar="N",
        help="stop after so many validations without progress (default: never)",
    )
    running.add_argument("--wandb", action="store_true", help="log to Weights & Biases too, offline (default: False)")
    return parser


_NOT_SETTINGS = {"command", "config", "debug", "quiet", "resume", "run"}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of TrainConfig that were given as arguments."""
    given = {name: value for name, value in vars(args).items() if name not in _NOT_SETTINGS}
    if "model_args" in given:
        given["model_args"] = dict(given["model_args"])
    return given


def run(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    from genimg_fast.training import TrainConfig, train

    given = settings(args)
    if "epochs" in given:  # wins over the max_steps of a file too, which would take its place
        given.setdefault("max_steps", None)
    if args.resume and not args.config and "out" in given:
        recorded = Path(given["out"]) / "config.json"
        if recorded.exists():
            args.config = recorded
        elif not {"model", "data"} <= given.keys():
            raise _common.CommandError(
                f"there is no {recorded} with the settings of a run to resume; if it was lost, give model and data as well"
            )
    if args.config:
        model_args = given.pop("model_args", {})
        config = TrainConfig.from_file(args.config, **given)
        config = dataclasses.replace(config, model_args={**config.model_args, **model_args})  # which checks them
    else:
        config = TrainConfig.from_dict(given, source="the command line, without --config")
    result = train(config, resume=args.resume, progress=not args.quiet)
    if not PartialState().is_main_process:
        return
    best = "none, since no validation gave a number"
    if result.best_metric is not None:
        best = f"{result.best_metric:.6g} ({'higher' if result.higher_is_better else 'lower'} is better)"
    print(
        f"{result.steps} steps, {result.images_per_second:.0f} images/s; best {result.metric.replace('_', ' ')} {best}"
    )
    print(f"weights in {result.out / 'checkpoints'}; curves: tensorboard --logdir {result.out / 'logs'}")


def _key_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
