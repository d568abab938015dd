# SPDX-License-Identifier: MIT
"""What a run is made of, from its configuration; whatever does not fit together is told in one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from genimg_fast import data, models
from genimg_fast.ops._half_types import multiplies
from genimg_fast.training.config import TrainConfig
from genimg_fast.training.errors import UserError

_OF_A_VAE = ("beta",)
_OF_A_GAN = ("discriminator_lr", "gan_loss", "gradient_penalty")
_MOST_WORKERS_A_CORE = 8


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


def check_machine(config: TrainConfig) -> None:
    """That the machine has what the settings ask for.

    Raises:
        UserError: if it has not.
    """
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb needs a further package: pip install 'genimg-fast[wandb]'")
    most = _MOST_WORKERS_A_CORE * (os.cpu_count() or 1)
    if config.num_workers > most:  # each is a process, and thousands of them take a machine down
        raise UserError(f"num_workers is {config.num_workers}; allowed on this machine: 0 to {most}")


def warn_of_settings(config: TrainConfig, model: models.ImageModel, device: torch.device) -> None:
    """Of what is allowed, and most often a mistake."""
    if config.mixed_precision == "bf16" and device.type == "cpu" and not multiplies(torch.bfloat16):
        warnings.warn("mixed_precision is 'bf16', for which this CPU has no instructions: 'no' is faster", stacklevel=2)
    if not isinstance(model, models.GAN):
        return
    if config.gan_loss == "wasserstein" and not config.gradient_penalty:
        warnings.warn(
            "gan_loss is 'wasserstein' without gradient_penalty, so nothing bounds the slope of the discriminator: "
            "Gulrajani et al. 2017 give it a weight of 10",
            stacklevel=2,
        )
    if config.gradient_penalty:
        norm = next((m for m in model.discriminator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)), None)
        if norm is not None:
            warnings.warn(
                f"gradient_penalty is of each image, and the discriminator of {config.model} normalises over the batch: "
                "Gulrajani et al. 2017 leave that out, and so does dense_gan",
                stacklevel=2,
            )


def create_model(config: TrainConfig) -> models.ImageModel:
    try:
        allowed = [name for name in models.list_arguments(config.model) if name not in ("image_size", "channels")]
        for name in config.model_args:
            if name not in allowed:
                raise UserError(f"model_args has {name!r}; allowed for {config.model}: {', '.join(allowed)}")
        return models.create(config.model, image_size=config.image_size, channels=config.channels, **config.model_args)
    except (TypeError, ValueError) as error:
        text = str(error).partition("\n")[0]  # the C++ stack follows in what torch raises
        raise UserError(f"model {config.model!r}: {text}") from error


def check_kind(config: TrainConfig, model: models.ImageModel) -> None:
    """That no setting was given that a model of this kind does not heed.

    Raises:
        UserError: for one that was.
    """
    kind, others = ("a VAE", _OF_A_GAN) if isinstance(model, models.VAE) else ("a GAN", _OF_A_VAE)
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        if setting.name in others and value != setting.default:
            raise UserError(f"{setting.name} is {value!r}, which means nothing to {config.model}: it is {kind}")


def check_batch_size(model: models.ImageModel, batch_size: int) -> None:
    """That each normalisation gets more than one value a channel, whatever the sizes of the images inside.

    Raises:
        UserError: if one does not.
    """
    if batch_size == 1 and any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        raise UserError(f"batch_size is 1; allowed: at least 2 for {model.name}, which normalises over the batch alone")


def open_data(config: TrainConfig) -> tuple[Any, Any]:
    """The training images and the test images."""
    train_data, test_data = (
        data.open_dataset(
            config.data,
            split=split,
            image_size=config.image_size,
            channels=config.channels,
            max_bad_files=config.max_bad_files,
        )
        for split in ("train", "test")
    )
    if len(test_data) < 2:
        hint = "; without folders train/ and test/ a tenth is held out, so 20 images are needed"
        raise UserError(
            f"data {config.data!r}: {len(test_data)} test images; at least 2 are needed to validate"
            + (hint if test_data.kind == "images" else "")
        )
    return train_data, test_data
