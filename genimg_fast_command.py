# SPDX-License-Identifier: MIT
"""The entry point of `genimg-fast`; outside the package, which imports torch: seconds, in which Ctrl-C is to be heard too."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a shell has it ignored in the background
    if usual:
        signal.signal(signal.SIGINT, _end)
    from genimg_fast import cli

    cli.build_parser()  # imports the commands
    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


def _end(*_: object) -> None:
    """At once: a KeyboardInterrupt is now and then swallowed where torch imports NumPy, which it then does without."""
    print("genimg-fast: interrupted", file=sys.stderr, flush=True)
    os._exit(130)
