# SPDX-License-Identifier: MIT
"""The command `genimg-fast`: one file a subcommand, each with `add_parser(subparsers)` and `run(args)`.

Subcommands import what they need inside `run`, so that `--help` is quick and works without the extras.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from genimg_fast import __version__, _backend
from genimg_fast.cli._common import CommandError, Parser

COMMANDS = ("train", "sample", "reconstruct", "interpolate", "export", "models", "bench", "doctor", "demo")

# What the extras install: module -> name, and the extra.
_OPTIONAL = {
    "PIL": ("Pillow", "train"),
    "accelerate": ("Accelerate", "train"),
    "matplotlib": ("Matplotlib", "train"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("ONNX Script", "export"),
    "safetensors": ("safetensors", "train"),
    "sklearn": ("scikit-learn", "train"),
    "tensorboard": ("TensorBoard", "train"),
    "tqdm": ("tqdm", "train"),
    "yaml": ("PyYAML", "train"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="genimg-fast",
        description="Train image generators, sample from them, and measure how much the fused kernels gain.",
        epilog="`genimg-fast COMMAND --help` explains a command.  Start with `genimg-fast demo`.",
    )
    parser.add_argument("--version", action="version", version=f"genimg_fast {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        module = importlib.import_module(f"genimg_fast.cli.{command}")
        subparser = module.add_parser(subparsers)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0; 1: a check failed; 2: an error, told in one line; 130: Ctrl-C; 143: a training run was stopped by SIGTERM.
    """
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:  # told here and not by argparse, which would name the help of no command
        _tell(args, f"unknown arguments: {' '.join(unknown)}; see genimg-fast {args.command} --help")
        return 2
    with nullcontext() if args.debug else _terse(args):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
        _check_environment()
        return args.run(args) or 0
    except KeyboardInterrupt:
        _tell(args, "interrupted")
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _tell(args, "the reader of the output closed it")
    except ImportError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        missing = _OPTIONAL.get((cause.name or "").partition(".")[0])
        if missing is None or args.debug:
            raise
        package, extra = missing
        print(f"genimg-fast {args.command} needs {package}: pip install 'genimg-fast[{extra}]'", file=sys.stderr)
    except Exception as error:
        line = _in_a_line(error)
        if args.debug or line is None:
            raise
        _tell(args, line)
        return max(2, getattr(error, "exit_code", 2))
    return 2


@contextmanager
def _terse(args: argparse.Namespace) -> Iterator[None]:
    """Warnings in one line each, without the place in the code; none that are meant for programmers."""

    def show_warning(message: Warning | str, *place: object, **options: object) -> None:
        _tell(args, f"warning: {' '.join(str(message).split())}")

    def show_thread_error(thread: threading.ExceptHookArgs) -> None:
        # On a full disk TensorBoard's thread fails first, and the main thread tells of it the next time it logs.
        if not issubclass(thread.exc_type, OSError):
            threading.__excepthook__(thread)

    before = threading.excepthook
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.showwarning = show_warning
        threading.excepthook = show_thread_error
        try:
            yield
        finally:
            threading.excepthook = before


def _check_environment() -> None:
    try:
        _backend.current_backend()
    except ValueError as error:
        raise CommandError(str(error)) from error


def _in_a_line(error: Exception) -> str | None:
    """All that a user needs to know of the error; None for a fault of ours, whose traceback tells us more."""
    text = str(error)
    if (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "DefaultCPUAllocator" in text
        or "CUDA out of memory" in text
    ):
        asked = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
        return f"out of memory: tried to allocate {asked[1]}" if asked else "out of memory"
    if isinstance(error, OSError) and error.strerror:  # without the number that str(error) begins with
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename!r}"
    elif not isinstance(error, (OSError, *_errors_for_users())):
        return None
    return " ".join(text.split())


def _errors_for_users() -> tuple[type[Exception], ...]:
    """The errors that are told in one line.  A module that was never imported has raised none."""
    classes = (("genimg_fast.training.errors", "UserError"), ("genimg_fast.data", "DataError"))
    imported = (getattr(sys.modules[module], name) for module, name in classes if module in sys.modules)
    return CommandError, _backend.BackendError, *imported


def _tell(args: argparse.Namespace, message: str) -> None:
    print(f"genimg-fast {args.command}: {message}", file=sys.stderr)
