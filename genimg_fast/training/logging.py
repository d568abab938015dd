# SPDX-License-Identifier: MIT
"""metrics.jsonl and TensorBoard: the same numbers in both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from genimg_fast.training.checkpoint import write_atomically


class RunLog:
    """Appends to the logs of a run.  `history` holds the records of metrics.jsonl: {"step": 10, "split": "train", ...}.

    Args:
        folder: of the run.
        step: to continue after; what a killed run logged beyond it is dropped, since those steps are taken again.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        path = folder / "metrics.jsonl"
        self.history = [record for record in _read(path) if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(path, lambda file: file.write(lines.encode()))
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(folder / "logs"), purge_step=step + 1)

    def add(self, step: int, split: str, values: dict[str, float]) -> None:
        """Records `values` under "train" or "test"."""
        record = {"step": step, "split": split, **values}
        self.history.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def add_images(self, step: int, images: torch.Tensor) -> None:
        self._tensorboard.add_images("samples", images, step)

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def _read(path: Path) -> list[dict[str, Any]]:
    """The records up to the first line that a kill cut short."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(record, dict) or "step" not in record:
                break
            records.append(record)
    return records
