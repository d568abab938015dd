# SPDX-License-Identifier: MIT
"""The one error of this package that speaks of data, not of arguments."""

from __future__ import annotations

import os


class DataError(RuntimeError):
    """Data that cannot be used. Its text is one line: the file, what was found there, and what is allowed."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker's exception is raised again in the main process with the worker's whole traceback as its
        # message. The last line of that is "package.DataError: message": keep the promise of one line there too.
        last_line = message.strip().rpartition("\n")[2]
        super().__init__(last_line.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "))


def quoted(path: str | os.PathLike[str]) -> str:
    """The path in quotes and on one line: a file name may hold line breaks and terminal escapes."""
    return repr(os.fspath(path))
