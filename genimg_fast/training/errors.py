# SPDX-License-Identifier: MIT
"""Errors that one line explains to the person who started the run."""

from __future__ import annotations


class UserError(RuntimeError):
    """Something the user can put right; the command line prints the message without a traceback."""

    exit_code = 1


class Interrupted(UserError):  # noqa: N818 (named as KeyboardInterrupt is)
    """The run was stopped by SIGINT (exit code 130) or SIGTERM (143); the message says how to resume."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
