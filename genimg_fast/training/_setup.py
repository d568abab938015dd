# SPDX-License-Identifier: MIT
"""What a run is made of, from its configuration; whatever does not fit together is told in one line."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from genimg_fast import data, models
from genimg_fast.training.config import TrainConfig
from genimg_fast.training.errors import UserError


def create_accelerator(config: TrainConfig) -> Accelerator:
    # Accelerate keeps its settings for the whole process; a second run in it may want another precision.
    AcceleratorState._reset_state()
    ddp = DistributedDataParallelKwargs(
        # Each process keeps the running statistics of its own images; only the first one's are saved and sampled from.
        broadcast_buffers=False
    )
    try:
        return Accelerator(
            cpu=not torch.accelerator.is_available(), mixed_precision=config.mixed_precision, kwargs_handlers=[ddp]
        )
    except ValueError as error:
        raise UserError(f"mixed_precision {config.mixed_precision!r} cannot be used here: {error}") from error


def check_extras(config: TrainConfig) -> None:
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb needs a further package: pip install 'genimg-fast[wandb]'")


def create_model(config: TrainConfig) -> models.ImageModel:
    try:
        return models.create(config.model, image_size=config.image_size, channels=config.channels, **config.model_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"model {config.model!r}: {error}") from error


def open_data(config: TrainConfig) -> tuple[Any, Any]:
    """The training images and the test images."""
    try:
        train_data, test_data = (
            data.open_dataset(config.data, split=split, image_size=config.image_size, channels=config.channels)
            for split in ("train", "test")
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"data {config.data!r}: {error}") from error
    if len(test_data) < 2:
        raise UserError(f"data {config.data!r}: {len(test_data)} test images; at least 2 are needed to validate")
    return train_data, test_data
