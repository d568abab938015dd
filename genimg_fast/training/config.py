# SPDX-License-Identifier: MIT
"""TrainConfig: everything that decides what a training run computes, checked once, before anything is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from genimg_fast.data.detect import MAX_IMAGE_SIZE
from genimg_fast.training.errors import UserError

# May differ between a run and its continuation: they change what is written and when, not what is computed.
_FREE_ON_RESUME = {
    "out",
    "data",  # a folder may have moved; the number of images is compared
    "epochs",
    "max_steps",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "validate_every",
    "early_stopping_patience",
    "num_workers",
    "max_bad_files",
    "wandb",
}


@dataclass
class TrainConfig:
    """The settings of one training run.

    A *step* is one update of the weights (for a GAN: of the discriminator, then of the generator).  It uses
    `batch_size * grad_accumulation * processes` images.

    Attributes:
        model: name in `genimg_fast.models.list_models()`.
        data: "digits", "photos", or the path of a data set (see `genimg_fast.data.open_dataset`).
        out: folder of the run; must not hold a run already, unless it is resumed.
        model_args: further arguments of `genimg_fast.models.create`, such as {"width": 32, "latent": 64}.
        image_size: height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        max_bad_files: how many unreadable files of a folder of images are skipped, each with a warning; one more ends the run.
        epochs: passes over the training images.
        max_steps: length of the run in steps; None: what `epochs` amounts to.
        batch_size: images a process sends through the model at once.
        grad_accumulation: batches whose gradients are summed up for one step.
        lr: learning rate; None: 1e-3 for a VAE, 2e-4 for a GAN (Radford et al. 2016).
        discriminator_lr: learning rate of a GAN's discriminator; None: `lr`.
        betas: Adam's two decay rates; None: (0.9, 0.999) for a VAE, (0.5, 0.999) for a GAN.
        weight_decay: decoupled weight decay (AdamW); 0 is plain Adam.
        lr_schedule: "constant", or "cosine" or "linear" decay to zero at the end of the run.
        warmup_steps: steps over which the learning rate first rises linearly from zero.
        grad_clip: largest L2 norm of the gradient of a model (of each of a GAN's two); None: no clipping.
        ema_decay: decay a step of the moving average of the weights that is validated, sampled and exported; None: no average.
        mixed_precision: "no", "bf16", or "fp16" (with loss scaling).
        beta: weight of the KL term of a VAE (Higgins et al. 2017).
        gan_loss: "bce", "hinge", "wasserstein" or "lsgan".
        gradient_penalty: weight of the gradient penalty of WGAN-GP (Gulrajani et al. 2017: 10); 0: none.
        seed: of the weights, the order of the images and the noise.
        deterministic: ask PyTorch for deterministic algorithms everywhere (slower on a GPU).
        log_every: steps between two lines of metrics.jsonl; the losses are read from the device only then.
        sample_every: steps between two sample grids; 0: only at the end.
        checkpoint_every: steps between two checkpoints; 0: only at the end.
        validate_every: steps between two validations; 0: only at the end.
        early_stopping_patience: validations in a row without a better metric after which the run ends; None: never.
        num_workers: processes that load images; 0: the training process does.
        wandb: log to Weights & Biases too, offline unless WANDB_MODE says otherwise; needs the extra "wandb".

    Raises:
        UserError: from the constructor, if a value has a wrong type or lies outside its range.
    """

    model: str
    data: str
    out: str
    model_args: dict[str, Any] = field(default_factory=dict)
    image_size: int = 32
    channels: int = 1
    max_bad_files: int = 10
    epochs: int = 20
    max_steps: int | None = None
    batch_size: int = 64
    grad_accumulation: int = 1
    lr: float | None = None
    discriminator_lr: float | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float = 0.0
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = 0
    grad_clip: float | None = None
    ema_decay: float | None = 0.999
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    beta: float = 1.0
    gan_loss: Literal["bce", "hinge", "wasserstein", "lsgan"] = "bce"
    gradient_penalty: float = 0.0
    seed: int = 0
    deterministic: bool = False
    log_every: int = 10
    sample_every: int = 500
    checkpoint_every: int = 500
    validate_every: int = 500
    early_stopping_patience: int | None = None
    num_workers: int = 0
    wandb: bool = False

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            setattr(self, f.name, _typed(f.name, getattr(self, f.name), hints[f.name]))
        self._check_ranges()

    def _check_ranges(self) -> None:
        self._require("out", self.out != "", "the path of a folder")
        self._require("image_size", 1 <= self.image_size <= MAX_IMAGE_SIZE, f"1 to {MAX_IMAGE_SIZE}")
        for name in ("epochs", "batch_size", "grad_accumulation", "log_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "early_stopping_patience"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1, or null")
        counts = ("warmup_steps", "sample_every", "checkpoint_every", "validate_every", "num_workers", "max_bad_files")
        for name in counts:
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("weight_decay", "beta", "gradient_penalty"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more, and finite")
        for name in ("lr", "discriminator_lr", "grad_clip"):
            value = getattr(self, name)
            self._require(name, value is None or 0 < value < math.inf, "greater than 0 and finite, or null")
        self._require(
            "betas", self.betas is None or all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1), or null"
        )
        self._require(
            "ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "in (0, 1), or null for no average"
        )
        self._require("seed", 0 <= self.seed < 2**32, "0 to 2^32 - 1")
        self._require("channels", self.channels in (1, 3), "1 or 3")

        for name in ("image_size", "channels"):
            if name in self.model_args:
                raise UserError(f"model_args has {name!r}: set {name} itself, which the data set follows too")

    def _require(self, name: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise UserError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the configuration") -> TrainConfig:
        """Makes a TrainConfig of a mapping; `source` is named in errors.

        Raises:
            UserError: for an unknown or missing key, naming the nearest allowed one, and for values that are not allowed.
        """
        allowed = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in allowed:
                near = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UserError(f"{source}: unknown key {key!r}; {hint}allowed: {', '.join(allowed)}")
        if missing := [name for name in ("model", "data", "out") if name not in values]:
            raise UserError(f"{source}: {' and '.join(missing)} must be given")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path, **overrides: Any) -> TrainConfig:
        """Reads a YAML or JSON file (by its suffix .yaml, .yml or .json); `overrides` win over what the file says.

        The config.json of a run will do: it holds the settings of that run.

        Raises:
            UserError: if the file cannot be read, and as `from_dict`.
        """
        values = _read_mapping(Path(path))
        if "genimg_fast" in values and isinstance(values.get("train"), dict):  # a run's, which holds more than these
            values = values["train"]
        return cls.from_dict({**values, **overrides}, source=str(path))

    def with_defaults(self, *, lr: float, betas: tuple[float, float]) -> TrainConfig:
        """Fills in what was left to the kind of model."""
        return dataclasses.replace(self, lr=self.lr or lr, betas=self.betas or betas)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: what config.json and the resume file hold."""
        values = dataclasses.asdict(self)
        values["betas"] = list(self.betas) if self.betas else None
        return values

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """What makes this the configuration of another run than the one with `earlier = to_dict()`, in words."""
        free = set(_FREE_ON_RESUME)
        if self.lr_schedule != "constant":  # the schedule stretches over the run, so its length matters
            free -= {"epochs", "max_steps"}
        now = self.to_dict()
        return [
            f"{name} (was {earlier.get(name)!r}, is {now[name]!r})"
            for name in now
            if name not in free and now[name] != earlier.get(name)
        ]


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    suffix = path.suffix.lower()
    if suffix not in (".json", ".yaml", ".yml"):
        raise UserError(f"{path}: the suffix is {suffix!r}; allowed: .yaml, .yml, .json")
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _check_unique([key for key in keys if key != "<<"])  # which may be given many times
            return node

    try:
        values = json.loads(text, object_pairs_hook=_unique) if suffix == ".json" else yaml.load(text, Loader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid {suffix[1:]}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([key for key, _ in pairs])
    return dict(pairs)


def _check_unique(keys: list[str]) -> None:
    """Of two values for a key both parsers take the last, in silence."""
    for key, count in Counter(keys).items():
        if count > 1:
            raise ValueError(f"key {key!r} is given {count} times")


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field's type; numbers may come as text, since YAML 1.1 reads 1e-4 as a string and flags are text."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # every optional field here is `something | None`
        return None if value in (None, "null", "none") else _typed(name, value, args[0])
    if origin is Literal:
        if value is False and "no" in args:  # YAML 1.1 reads a bare no as false
            value = "no"
        if value not in args:
            raise UserError(f"{name} is {value!r}; allowed: {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise UserError(f"{name} is {value!r}; allowed: a list of {len(args)} numbers")
        return tuple(_typed(name, v, a) for v, a in zip(value, args, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{name} is {value!r}; allowed: keys and values")
        return dict(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    if hint in (int, float):
        try:
            if not isinstance(value, (int, float, str)) or isinstance(value, bool):
                raise ValueError
            number = float(value)
            if hint is float:
                return number
            if number == int(number):
                return int(number)
        except (ValueError, OverflowError):
            pass
    elif isinstance(value, hint):
        return value
    kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint]
    raise UserError(f"{name} is {value!r}; allowed: {kind}")
