# SPDX-License-Identifier: MIT
"""The command `genimg-fast`: one file a subcommand, each with `add_parser(subparsers)` and `run(args)`.

Subcommands import what they need inside `run`, so that `--help` is quick and works without the extras.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from genimg_fast import __version__
from genimg_fast.cli._common import CommandError, HelpFormatter

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
    parser = argparse.ArgumentParser(
        prog="genimg-fast",
        description="Train image generators, sample from them, and measure how much the fused kernels gain.",
        formatter_class=HelpFormatter,
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
    args = build_parser().parse_args(argv)
    with nullcontext() if args.debug else _terse(args):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    try:
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
        if args.debug or not isinstance(error, (OSError, *_errors_for_users())):
            raise
        _tell(args, " ".join(str(error).split()))
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


def _errors_for_users() -> tuple[type[Exception], ...]:
    """The errors whose one line is all that a user needs.  A module that was never imported has raised none."""
    classes = (("genimg_fast.training.errors", "UserError"), ("genimg_fast.data", "DataError"))
    return CommandError, *(getattr(sys.modules[module], name) for module, name in classes if module in sys.modules)


def _tell(args: argparse.Namespace, message: str) -> None:
    print(f"genimg-fast {args.command}: {message}", file=sys.stderr)
