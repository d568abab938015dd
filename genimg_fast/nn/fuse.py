# SPDX-License-Identifier: MIT
"""Makes the modules of a model run fused, in place, and undoes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import nn

from genimg_fast._table import format_table
from genimg_fast.nn.blocks import Conv2dBNAct, ConvTranspose2dBNAct
from genimg_fast.nn.losses import BCELoss, BCEWithLogitsLoss
from genimg_fast.nn.sequential import FUSABLE_HEADS, FusedSequential

# Exact classes, before and after.  An instance changes its class and nothing else: children, parameters, buffers and hooks
# stay the objects they are, so optimizers and references to them stay good.
_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: FusedSequential,
    nn.BCELoss: BCELoss,
    nn.BCEWithLogitsLoss: BCEWithLogitsLoss,
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    **{fused: plain for plain, fused in _FUSED.items()},
    ConvTranspose2dBNAct: nn.Sequential,
    Conv2dBNAct: nn.Sequential,
}

Model = TypeVar("Model", bound=nn.Module)


class FuseRow(NamedTuple):
    module: str
    """Path in the model; "" for the model itself."""
    layers: tuple[str, ...]
    """The children concerned, by name; empty where it is the module as a whole."""
    description: str
    """The layers in words, such as "ConvTranspose2d + BatchNorm2d + ReLU"."""
    kind: str | None
    """The function of `genimg_fast.functional` that runs them; None if left as they are."""
    reason: str
    """Why they are left as they are; empty if fused."""


@dataclass(frozen=True, repr=False)
class FuseReport:
    """What `fuse` made of a model.  Prints as a table."""

    rows: tuple[FuseRow, ...]

    @property
    def fused(self) -> tuple[FuseRow, ...]:
        return tuple(row for row in self.rows if row.kind is not None)

    @property
    def not_fused(self) -> tuple[FuseRow, ...]:
        return tuple(row for row in self.rows if row.kind is None)

    def __str__(self) -> str:
        summary = f"{len(self.fused)} fused, {len(self.not_fused)} left as they are"
        if not self.rows:
            return summary
        cells = [
            (row.module or "(model)", ", ".join(row.layers), row.description, row.kind or "-", row.reason)
            for row in self.rows
        ]
        return f"{format_table(('module', 'layers', 'what', 'fused as', 'why not'), cells)}\n{summary}"

    __repr__ = __str__


def fuse(model: nn.Module, *, filter_fn: Callable[[str, nn.Module], bool] | None = None) -> FuseReport:
    """Makes a model run faster: each `torch.nn.Sequential` in it, and each BCE loss, runs fused from here on.

    Works in place on the instance, by class alone: ``nn.Sequential`` becomes `FusedSequential`, ``nn.BCELoss`` and
    ``nn.BCEWithLogitsLoss`` become those of `genimg_fast.nn`.  Outputs and gradients stay the same within rounding.
    ``state_dict`` keys, Parameter objects and hooks are untouched, so checkpoints load and optimizers built before go on
    working.  `unfuse` turns it back.

    Args:
        model: any module; it may be an ``nn.Sequential`` itself.
        filter_fn: called with the path and the module of each candidate; False leaves it as it is.

    Returns:
        What was fused and what was not, with the reason; prints as a table.

    Raises:
        TypeError: if model is not a module.
    """
    _check_module("fuse", model)
    rows = [row for name, module in model.named_modules() for row in _fuse_module(name, module, filter_fn)]
    return FuseReport(tuple(rows))


def unfuse(model: Model) -> Model:
    """Undoes `fuse`, in place, and returns the model.

    The blocks of this package (`ConvTranspose2dBNAct`, `Conv2dBNAct`, `FusedSequential`) become ``nn.Sequential`` too, so
    ``unfuse(copy.deepcopy(model))`` is the plain `torch.nn` twin of a model of `genimg_fast.models`: same ``state_dict``, same
    outputs.

    Raises:
        TypeError: if model is not a module.
    """
    _check_module("unfuse", model)
    for module in model.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
    return model


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


def _fuse_module(name: str, module: nn.Module, filter_fn: Callable[[str, nn.Module], bool] | None) -> list[FuseRow]:
    """Swaps the class of one module if that fuses anything in it; its rows of the report."""
    fused = _FUSED.get(type(module))
    if fused is None and type(module) not in _PLAIN:
        return _calls_layers_itself(name, module)
    whole = FuseRow(name, (), type(module).__name__, None, "")
    if fused is not None and "forward" in module.__dict__:
        return [whole._replace(reason="its forward() was replaced")]
    if fused is not None and filter_fn is not None and not filter_fn(name, module):
        return [whole._replace(reason="filter_fn left it out")]
    if isinstance(module, nn.Sequential):
        rows = _plan_rows(name, module)
    else:
        rows = [whole._replace(kind="bce_loss" if isinstance(module, nn.BCELoss) else "bce_with_logits_loss")]
    if fused is not None and any(row.kind for row in rows):
        module.__class__ = fused
    return rows


def _plan_rows(name: str, module: nn.Sequential) -> list[FuseRow]:
    rows = []
    for names, kind, reason in FusedSequential.plan(module):  # type: ignore[arg-type]
        children = [module._modules[child] for child in names]
        if not isinstance(children[0], nn.Sequential):  # which has rows of its own
            rows.append(FuseRow(name, names, " + ".join(type(child).__name__ for child in children), kind, reason))
    return rows


def _calls_layers_itself(name: str, module: nn.Module) -> list[FuseRow]:
    """A row for a module of another class, if it holds layers that would fuse in an `nn.Sequential`."""
    layers = {child: layer for child, layer in module.named_children() if type(layer) in FUSABLE_HEADS}
    if not layers:
        return []
    if isinstance(module, nn.Sequential):
        reason = "a subclass of nn.Sequential, which may do more than it: only nn.Sequential is fused yet"
    else:
        reason = "conv, norm and activation are called in a forward(): only nn.Sequential is fused yet"
    description = ", ".join(dict.fromkeys(type(layer).__name__ for layer in layers.values()))
    return [FuseRow(name, tuple(layers), description, None, reason)]
