# SPDX-License-Identifier: MIT
"""Makes the modules of a model run fused, in place, and undoes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, NamedTuple, TypeVar, cast

from torch import nn
from torch.nn.utils import parametrize

from genimg_fast._table import format_table
from genimg_fast.nn.alone import ALONE
from genimg_fast.nn.blocks import Conv2dBNAct, ConvTranspose2dBNAct
from genimg_fast.nn.fused import plain_class
from genimg_fast.nn.layers import Call, why_must_be_called, why_not_head
from genimg_fast.nn.losses import BCELoss, BCEWithLogitsLoss
from genimg_fast.nn.norm import FusedSyncBatchNorm
from genimg_fast.nn.replay import forget
from genimg_fast.nn.sequential import FusedSequential
from genimg_fast.nn.steps import Step, plan
from genimg_fast.nn.twin import chains_of, holds_layers, named, runs_its_layers, steps_of, twin_of

# Exact classes, before and after.  An instance changes its class and nothing else: children, parameters, buffers and hooks
# stay the objects they are, so optimizers and references to them stay good.
_LOSSES: dict[type[nn.Module], type[nn.Module]] = {nn.BCELoss: BCELoss, nn.BCEWithLogitsLoss: BCEWithLogitsLoss}
_BLOCKS = (ConvTranspose2dBNAct, Conv2dBNAct)

Model = TypeVar("Model", bound=nn.Module)


class FuseRow(NamedTuple):
    module: str
    """Path in the model; "" for the model itself."""
    layers: tuple[str, ...]
    """The layers concerned, by their paths in the module; empty where it is the module as a whole."""
    description: str
    """The layers in words, such as "ConvTranspose2d + BatchNorm2d + ReLU"."""
    kind: str | None
    """The function of `genimg_fast.functional` that runs them, or "reordered" where the two are called in the other order; None if left
    as they are."""
    reason: str
    """Why they are left as they are; empty if fused."""


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` made of a model.  Prints as a table."""

    model: nn.Module
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
    """Makes a model run faster: its chains of convolution, normalisation and activation run fused from here on.

    Works in place on the instance, by class alone:

    - ``nn.Sequential`` becomes `FusedSequential`;
    - a module whose methods call layers on each other's output, as in ``F.relu(self.bn(self.conv(x)))`` or in a loop of ``x =
      layer(x)``, becomes an instance of a subclass of its class, in which those methods make fused calls and are otherwise what
      they were;
    - ``Conv2d``, ``ConvTranspose2d``, ``BatchNorm1d``, ``BatchNorm2d``, ``InstanceNorm2d`` and ``SyncBatchNorm`` that are called
      in any other way run as one such call each, but for convolutions with groups or of kernel 1;
    - a nearest-neighbour upsampling by two and the ``Conv2d`` of kernel 3 after it, with or without a ``ReflectionPad2d`` or
      ``ReplicationPad2d`` by one between them, run as one transposed convolution of kernel 4 and stride 2 (Odena, Dumoulin and
      Olah 2016 call the two a resize-convolution);
    - a ``Conv2d`` of kernel 3 and the mean over two by two pixels after it (``AvgPool2d(2)``) run as one convolution of kernel 4 and
      stride 2;
    - a ``Conv2d`` of kernel 1 and such a resampling are called in the order that costs less ("reordered");
    - on a CPU that emulates the half type of a model, or of autocast, calls with a convolution are computed in float32 and rounded;
    - ``nn.BCELoss`` and ``nn.BCEWithLogitsLoss`` become those of `genimg_fast.nn`.

    Outputs and gradients stay the same within rounding.  ``state_dict`` keys, Parameter objects and hooks are untouched, so
    checkpoints load and optimizers built before go on working.  Layers with hooks, with a parametrization or of a subclass are
    called as they are.  `unfuse` turns it back.

    Args:
        model: any module; it may be a layer or a loss itself.
        filter_fn: called with the path and the module of each candidate; False leaves it, and the layers it calls, as they
            are.  If it raises, the model stays what it was.

    Returns:
        What was fused and what was not, with the reason; prints as a table.

    Raises:
        TypeError: if model is not a module, or filter_fn no function.
    """
    _check_module("fuse", model)
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"fuse: filter_fn must be a function, got {type(filter_fn).__name__}")
    return _Fuser(model, filter_fn).fuse()


def unfuse(model: Model | FuseReport) -> Model:
    """Undoes `fuse`, in place, and returns the model.

    The blocks of this package (`ConvTranspose2dBNAct`, `Conv2dBNAct`, `FusedSequential`) become ``nn.Sequential`` too, so
    ``unfuse(copy.deepcopy(model))`` is the plain `torch.nn` twin of a model of `genimg_fast.models`: same ``state_dict``, same
    outputs.

    Args:
        model: the model, or the report that `fuse` returned for it, so that ``unfuse(fuse(model)) is model``.

    Raises:
        TypeError: if model is neither.
    """
    if isinstance(model, FuseReport):
        model = cast(Model, model.model)
    _check_module("unfuse", model)
    for module in model.modules():
        forget(module)
        cls = type(module)
        if parametrize.is_parametrized(module):  # since fuse(): its class is its own, made of the fused one
            (fused,) = cls.__bases__
            if (plain := _plain(fused)) is not fused:
                members = {n: v for n, v in vars(cls).items() if n not in ("__dict__", "__weakref__")}
                module.__class__ = type(f"Parametrized{plain.__name__}", (plain,), members)
        else:
            module.__class__ = _plain(cls)
            _take_back_methods(module, cls)
    return model


def _take_back_methods(module: nn.Module, fused: type) -> None:
    """Of the attributes of a module, in which others keep or wrap its forward(), as accelerate does."""
    for name, value in tuple(vars(module).items()):
        if type(value) is MethodType and value.__self__ is module:
            method = value.__func__.__name__
            plain = getattr(type(module), method, None)
            if plain is not None and getattr(fused, method, None) is value.__func__:
                vars(module)[name] = MethodType(plain, module)


def _plain(cls: type[nn.Module]) -> type[nn.Module]:
    return nn.Sequential if cls in _BLOCKS else plain_class(cls)


def _check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")


class _Fuser:
    """One run of `fuse`."""

    def __init__(self, model: nn.Module, filter_fn: Callable[[str, nn.Module], bool] | None):
        self.model, self.filter_fn = model, filter_fn
        self.rows: dict[nn.Module, list[FuseRow]] = {}
        self.joined: dict[nn.Module, list[list[Any]]] = {}
        """The chains that a module's methods join."""
        self.left_to_callers: set[nn.Module] = set()
        """Layers that the modules which call them fuse."""
        self.left_as_they_are: set[nn.Module] = set()
        """Layers of modules that are left as they are."""
        self.called_apart: set[nn.Module] = set()
        """Layers of a Sequential that some module calls one by one too."""
        self.fused_layers: set[nn.Module] = set()

    def fuse(self) -> FuseReport:
        modules = [(name, module) for name, module in self.model.named_modules()]
        classes = [type(module) for _, module in modules]
        try:
            return self.fuse_all(modules)
        except BaseException:  # of filter_fn
            for (_, module), cls in zip(modules, classes, strict=True):
                module.__class__ = cls
            raise

    def fuse_all(self, modules: list[tuple[str, nn.Module]]) -> FuseReport:
        for _, module in modules:
            if type(module) in ALONE.values():  # it may have found callers that fuse it since
                module.__class__ = plain_class(type(module))
            if type(module) is nn.SyncBatchNorm and not why_must_be_called(module):
                # the class that `plan` knows; undone below where nothing fused it
                module.__class__ = FusedSyncBatchNorm  # type: ignore[assignment]
        for name, module in modules:
            self.rows[module] = self.fuse_module(name, module)
        for name, module in modules:
            if module not in self.left_as_they_are and module not in self.left_to_callers - self.called_apart:
                self.rows[module] += self.fuse_layer(name, module)
        for name, module, steps in steps_of(self.model, lambda module: self.joined.get(module, ())):
            self.rows[module] += self.step_rows(name, steps)
        for _, module in modules:
            if type(module) is FusedSyncBatchNorm and module not in self.fused_layers:
                module.__class__ = nn.SyncBatchNorm  # type: ignore[assignment]
        return FuseReport(self.model, tuple(row for rows in self.rows.values() for row in rows))

    def fuse_module(self, name: str, module: nn.Module) -> list[FuseRow]:
        kind = type(module)
        if kind in _LOSSES or kind in _LOSSES.values():
            return self.fuse_loss(name, module)
        return self.fuse_sequential(name, module) if runs_its_layers(kind) else self.fuse_calls(name, module)

    def fuse_loss(self, name: str, module: nn.Module) -> list[FuseRow]:
        row = _whole(name, module, self.why_not(name, module))
        if row.reason:
            return [row]
        module.__class__ = _LOSSES.get(type(module), type(module))
        return [row._replace(kind="bce_loss" if isinstance(module, nn.BCELoss) else "bce_with_logits_loss")]

    def fuse_sequential(self, name: str, module: nn.Module) -> list[FuseRow]:
        """An `nn.Sequential`, or an instance of a subclass that calls its layers as it does."""
        layers = set(module.children())
        if reason := self.why_not(name, module):
            self.left_as_they_are |= layers
            return [_whole(name, module, reason)]
        self.left_to_callers |= layers
        if _fuses(module) and not isinstance(module, FusedSequential):
            exact = type(module) is nn.Sequential
            if reason := _change_class(module, lambda: FusedSequential if exact else twin_of(type(module), ())):
                return [_whole(name, module, reason)]
        return [] if isinstance(module, FusedSequential) else self.step_rows(name, plan(list(module._modules.items())))

    def fuse_calls(self, name: str, module: nn.Module) -> list[FuseRow]:
        """A module with methods that call layers."""
        cls = plain_class(type(module))
        roles, joined, alone, apart, joins_argument, reason = chains_of(module)
        rows = [_whole(name, module, reason)] if reason else []
        steps = [step for chain in joined for step in plan(named(chain, module))]
        fuses = joins_argument or any(step.kind or isinstance(step.layers[0], nn.Sequential) for step in steps)
        if not fuses and not any(step.kind for step in plan([("", layer) for layer in (*alone, *apart)])):
            return rows  # `fuse_layer` says why
        layers = {layer for chain in joined for layer in chain if isinstance(layer, nn.Module)}
        if self.filter_fn is not None and not self.filter_fn(name, module):
            self.left_as_they_are |= layers | set(alone)
            return [_whole(name, module, _FILTERED)]
        self.called_apart.update(apart)
        if not fuses:
            return rows
        if reason := _change_class(module, lambda: twin_of(cls, roles)):
            return [*rows, _whole(name, module, reason)]
        self.joined[module] = joined
        self.left_to_callers |= layers
        return rows

    def fuse_layer(self, name: str, module: nn.Module) -> list[FuseRow]:
        """A convolution or normalisation that is not called in a way that `fuse_calls` knows."""
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)):
            return []
        reason, kind = why_not_head(module) or self.why_not(name, module), None
        if not reason:
            [step] = plan([("", module)])
            reason, kind = step.reason, step.kind
        if not kind and module in self.called_apart:  # its Sequential has a row for it
            return []
        row = _whole(name, module, reason, kind)
        if kind:
            self.fused_layers.add(module)
            module.__class__ = ALONE.get(type(module), type(module))  # type: ignore[assignment]
        return [row]

    def step_rows(self, name: str, steps: list[Step]) -> list[FuseRow]:
        """One for each step, however often it is taken, but for modules that have rows of their own."""
        self.fused_layers.update(
            layer for step in steps if step.kind for layer in step.layers if isinstance(layer, nn.Module)
        )
        rows = (
            FuseRow(name, tuple(filter(None, step.names)), " + ".join(map(_word, step.layers)), step.kind, step.reason)
            for step in steps
            if not holds_layers(step.layers[0])
        )
        return list(dict.fromkeys(rows))

    def why_not(self, name: str, module: nn.Module) -> str:
        if "forward" in module.__dict__:
            return "its forward() was replaced"
        if self.filter_fn is not None and not self.filter_fn(name, module):
            return _FILTERED
        return ""


_FILTERED = "filter_fn left it out"


def _fuses(module: nn.Module) -> bool:
    """Whether a Sequential, or one inside it, has layers that fuse: the outer ones run those of the inner ones with their own."""
    steps = plan(list(module._modules.items()))
    return any(step.kind or (runs_its_layers(type(step.layers[0])) and _fuses(step.layers[0])) for step in steps)


def _change_class(module: nn.Module, make: Callable[[], type[nn.Module]]) -> str:
    """Why it cannot be changed; empty if it was."""
    try:
        module.__class__ = make()
    except Exception as error:
        # of a metaclass: one that keeps a registry may refuse a second class of a name in any way
        return f"its class cannot be subclassed: {error}"
    return ""


def _whole(name: str, module: nn.Module, reason: str, kind: str | None = None) -> FuseRow:
    return FuseRow(name, (), plain_class(type(module)).__name__, kind, reason)


def _word(layer: nn.Module | Call) -> str:
    return layer.name if isinstance(layer, Call) else plain_class(type(layer)).__name__
