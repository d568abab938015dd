# SPDX-License-Identifier: MIT
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genimg_fast
from genimg_fast import _backend, cli
from genimg_fast._backend import BackendError
from genimg_fast.cli import models as command  # stands in for any command
from genimg_fast.training import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([name, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: genimg-fast {name} ")
    example = text.partition("example:\n")[2].strip().splitlines()
    for line in example:
        assert line.strip().startswith(f"genimg-fast {name}")
        cli.build_parser().parse_args(line.split()[1:])  # the example must be right
    assert example
    # Sentences say what it does; no argument goes without help.
    parser = subparsers()[name]
    assert parser.description.endswith(".")
    assert all(action.help for action in parser._actions)


def subparsers():
    (action,) = [a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def test_help_lists_all_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ")}
    assert listed >= set(cli.COMMANDS)


def test_parsing_imports_nothing_heavy():
    code = (
        "import sys, genimg_fast; before = set(sys.modules); from genimg_fast.cli import build_parser; build_parser();"
    )
    code += (
        "print([m for m in ('PIL', 'accelerate', 'matplotlib', 'sklearn', 'yaml') if m in set(sys.modules) - before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"genimg_fast {genimg_fast.__version__}"


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def missing(name):
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def wrapped(cause):
    """What `raise ImportError(...) from cause` gives."""
    error = ImportError("a package says what it needs")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such\nmodel"), 2, "genimg-fast models: no such model"),
        (FileNotFoundError(2, "No such file", "x.pt"), 2, "genimg-fast models: No such file: 'x.pt'"),
        (OSError("no such repository"), 2, "genimg-fast models: no such repository"),
        (BackendError("conv: cannot serve"), 2, "genimg-fast models: conv: cannot serve"),
        (MemoryError(), 2, "genimg-fast models: out of memory"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity"),
            2,
            "genimg-fast models: out of memory: tried to allocate 2.50 GiB",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity"),
            2,
            "genimg-fast models: out of memory: tried to allocate 2.50 GiB",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 25 bytes. Error code 12"),
            2,
            "genimg-fast models: out of memory: tried to allocate 25 bytes",
        ),
        (missing("PIL.Image"), 2, "genimg-fast models needs Pillow: pip install 'genimg-fast[train]'"),
        (wrapped(missing("accelerate")), 2, "genimg-fast models needs Accelerate: pip install 'genimg-fast[train]'"),
        (KeyboardInterrupt(), 130, "genimg-fast models: interrupted"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, code, line):
    def fail(args):
        raise error

    monkeypatch.setattr(command, "run", fail)
    assert cli.main(["models"]) == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("name", ["doctor", "train"])
def test_a_mistyped_backend_is_one_line(monkeypatch, capsys, tmp_path, name):
    monkeypatch.setattr(_backend, "_backend", "fast")  # what the environment variable gave
    argv = ["train", "vae", "--data", "digits", "--out", str(tmp_path / "run")] if name == "train" else [name]
    assert cli.main(argv) == 2
    line = "GENIMG_FAST_BACKEND is 'fast'; allowed are 'auto', 'native', 'reference'"
    assert capsys.readouterr() == ("", f"genimg-fast {name}: {line}\n")
    assert not (tmp_path / "run").exists()


def test_flags_have_the_same_metavar_in_every_command():
    metavars = {}
    for parser in subparsers().values():
        for action in parser._actions:
            if action.option_strings and action.nargs != 0 and not action.choices:
                metavars.setdefault(action.dest, set()).add(action.metavar or action.dest.upper())
    shared = {name: values for name, values in metavars.items() if name != "out"}
    assert all(len(values) == 1 for values in shared.values()), shared
    for name in ("n", "columns", "rows", "steps", "seed", "threads", "epochs"):
        assert metavars[name] == {"N"}, name


def test_debug_shows_the_traceback(monkeypatch):
    def fail(args):
        raise UserError("no")

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(UserError):
        cli.main(["models", "--debug"])


@pytest.mark.parametrize("error", [ValueError("a bug"), missing("numpy")])
def test_bugs_keep_their_traceback(monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr(command, "run", fail)
    with pytest.raises(type(error)):
        cli.main(["models"])


@pytest.mark.parametrize("imported", ["torch", "genimg_fast.cli.doctor"])
def test_ctrl_c_during_the_imports_is_one_line(imported):
    code = f"""
import signal, sys

class Interrupting:
    def find_spec(name, *place):
        if name == {imported!r}:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes away from what it runs in the background
sys.meta_path.insert(0, Interrupting)
from genimg_fast_command import main
sys.exit(main())
"""
    result = subprocess.run([sys.executable, "-c", code, "models"], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "genimg-fast: interrupted\n")


def test_closed_pipe_is_one_line():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from genimg_fast.cli import main; sys.exit(main(['models']))"
    # Unbuffered, so that the write to the closed pipe happens inside the command.
    result = subprocess.run([sys.executable, "-u", "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (2, "genimg-fast models: the reader of the output closed it\n")
