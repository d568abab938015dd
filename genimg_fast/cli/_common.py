# SPDX-License-Identifier: MIT
"""What several subcommands share: arguments and the look of the help."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch

    from genimg_fast.models import ImageModel


Number = TypeVar("Number", int, float)

BATCH = 256  # bounds the memory that many images take


class CommandError(RuntimeError):
    """An error that is told to the user in one line, without a traceback."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the example, and leaves room for the longest flag beside its help."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(110, shutil.get_terminal_size().columns - 2))


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with the arguments in one line, and knows flags by their whole names alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_parser(subparsers, name: str, description: str, example: str) -> argparse.ArgumentParser:
    """A subcommand whose help is `description` (one sentence, capital and full stop), its arguments, and `example`."""
    return subparsers.add_parser(
        name,
        help=description[0].lower() + description[1:].rstrip("."),
        description=description,
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines()),
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="RUN",
        type=Path,
        help="a folder made by `genimg-fast train` or `save_pretrained`, or a .safetensors file",
    )


def add_out(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=png, required=True, metavar="PNG", help="the picture to write")


def add_device(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")


def add_seed(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="the same seed gives the same picture (default: %(default)s)"
    )


def _parsed(kind: type[Number], text: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}") from None


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    value = _parsed(int, text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def duration(text: str) -> float:
    """An argparse type: a time, 0 or more and finite."""
    value = _parsed(float, text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more and finite, got {text}")
    return value


def seed(text: str) -> int:
    """An argparse type: what a `torch.Generator` takes for a seed."""
    value = _parsed(int, text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be from 0 to 2^63 - 1, got {value}")
    return value


def png(text: str) -> Path:
    """An argparse type: the path of a PNG file."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must end in .png, got {text!r}")
    return path


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one.

    Raises:
        CommandError: there is no such device, or torch cannot use it.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CommandError(f"--device {name!r} is no device; use cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device {name!r}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CommandError(f"--device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def load(args: argparse.Namespace) -> ImageModel:
    """The model `args.model` in eval mode, on the device that `args.device` names."""
    from genimg_fast.training import load_model

    device = choose_device(args.device)
    return load_model(args.model).to(device)


def described(model: ImageModel, path: Path) -> str:
    """The model that was loaded from `path`, with the file that held its weights."""
    from genimg_fast.training import checkpoint

    file = checkpoint.find_weights(path)
    step = checkpoint.step_of_weights(file)
    return f"{model.name} ({file}{'' if step is None else f', step {step}'})"


def check_fits(given: str, count: int, size: tuple[int, int], columns: int | None) -> None:
    """That `count` images of `size` (height, width) can be one picture, before time and memory are spent on them.

    Args:
        given: the argument that the count is, as the user knows it.

    Raises:
        CommandError: there are too many.
    """
    from genimg_fast.data.decode import MAX_PIXELS
    from genimg_fast.data.grid import most_images

    most = most_images(*size, columns)
    if count > most:
        raise CommandError(f"{given} is {count}; allowed: at most {most}, which make a picture of {MAX_PIXELS} pixels")


@contextmanager
def collected(batches: Iterable[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """The `count` images of the batches as one tensor, to be written in the block; a bar tells of it if it takes a second."""
    import torch
    from tqdm import tqdm

    images = []
    with tqdm(total=count, unit="img", unit_scale=True, dynamic_ncols=True, delay=1) as bar:
        for batch in batches:
            images.append(batch.cpu())
            bar.update(len(batch))
        if bar.last_print_t > bar.start_t:  # it is seen
            bar.set_description("writing")
        together = torch.cat(images)
        images.clear()
        yield together
