# SPDX-License-Identifier: MIT
"""What was found, in a file that is whole after every step: a run that is cut off keeps what it has."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from genimg_fast._files import write_atomically


class Report:
    """A dictionary that is written to `path` at every `add`, and the time that is left.

    Args:
        deadline: of this run, on `time.monotonic`'s clock.
    """

    def __init__(self, path: Path, deadline: float, content: dict[str, Any]) -> None:
        self.path, self.deadline, self.content = path, deadline, dict(content)
        self._start, self._before = time.monotonic(), self.content.get("seconds", 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, section: str, value: Any) -> None:
        """Sets a section; to a list, appends."""
        if isinstance(self.content.get(section), list):
            self.content[section].append(value)
        else:
            self.content[section] = value
        self._write()

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:4.0f} s] {text}", flush=True)

    def _write(self) -> None:
        self.content["seconds"] = round(self._before + time.monotonic() - self._start, 1)
        text = json.dumps(self.content, indent=1) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))
