# SPDX-License-Identifier: MIT
"""metrics.jsonl, TensorBoard and, where it is asked for, Weights & Biases: the same numbers in all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from genimg_fast.data import to_grid
from genimg_fast.training.checkpoint import write_atomically


class RunLog:
    """Appends to the logs of a run.  `history` holds the records of metrics.jsonl: {"step": 10, "split": "train", ...}.

    Args:
        folder: of the run.
        step: to continue after; what a killed run logged beyond it is dropped, since those steps are taken again.
        wandb_settings: what to tell Weights & Biases of the run; None: do not log there.
    """

    def __init__(self, folder: Path, *, step: int, wandb_settings: dict[str, Any] | None = None) -> None:
        path = folder / "metrics.jsonl"
        self.history = [record for record in _read(path) if record["step"] <= step]
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        write_atomically(path, lambda file: file.write(lines.encode()))
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(folder / "logs"), purge_step=step + 1)
        self._wandb = None if wandb_settings is None else _start_wandb(folder, wandb_settings)

    def add(self, step: int, split: str, values: dict[str, float]) -> None:
        """Records `values` under "train" or "test"."""
        record = {"step": step, "split": split, **values}
        self.history.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def add_images(self, step: int, images: torch.Tensor) -> None:
        self._tensorboard.add_images("samples", images.nan_to_num(nan=0.0), step)
        if self._wandb:
            import wandb

            self._wandb.log({"samples": [wandb.Image(to_grid(images))]}, step=step)

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _start_wandb(folder: Path, settings: dict[str, Any]) -> Any:
    """A run in folder/wandb.  The sessions of a resumed run share an id, by which `wandb sync` joins them."""
    import wandb

    identity = folder / "wandb" / "id"
    run = wandb.init(
        project="genimg_fast",
        name=folder.resolve().name,
        dir=str(folder),
        config=settings,
        mode=os.environ.get("WANDB_MODE", "offline"),
        id=identity.read_text() if identity.exists() else None,
        resume="allow",
        settings=wandb.Settings(silent=True),
    )
    identity.parent.mkdir(exist_ok=True)  # wandb makes its folder elsewhere where it cannot write here
    write_atomically(identity, lambda file: file.write(run.id.encode()))
    return run


def _read(path: Path) -> list[dict[str, Any]]:
    """The records up to the first line that a kill cut short."""
    records: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                break
            records.append(record)
    return records
