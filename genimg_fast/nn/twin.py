# SPDX-License-Identifier: MIT
"""Fused twins of classes: subclasses in which methods that call layers, or `nn.Sequential`'s own forward(), run fused.

An instance becomes fused by becoming one of its class's twin, and plain again by going back: nothing in it changes.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, new_class
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from genimg_fast.nn.fused import Fused, FusedType, pickle_classes_of, plain_class
from genimg_fast.nn.layers import HEADS, Call, activation_of, class_of, doubles, halves, may_pass_through, pads_edge
from genimg_fast.nn.rewrite import AFTER, BEFORE, HEAD, RUN_IN_TURN, SEQUENTIAL, NotRewritableError, rewrite
from genimg_fast.nn.sequential import FusedSequential, flat, opened, run_in_turn
from genimg_fast.nn.steps import Step, plan

Roles = tuple[tuple[str, str], ...]
"""Layers as methods name them, such as ``self.conv``, and their roles (see `rewrite`)."""


def runs_its_layers(cls: type[nn.Module]) -> bool:
    """Whether forward() is that of `nn.Sequential`, or a method around it."""
    forward = getattr(plain_class(cls), "forward", None)  # the class of a scripted module has none
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    if not issubclass(cls, nn.Sequential) or cls.__iter__ is not nn.Sequential.__iter__:
        return False
    return forward is nn.Sequential.forward or {"super", "forward"} <= {*names}


class Chains(NamedTuple):
    """What methods of a module call."""

    roles: Roles
    joined: list[list[Any]]
    """Layers on each other's output."""
    alone: list[Any]
    """Heads, each of which is never joined with another layer: they can run fused however they are called."""
    apart: list[Any]
    """Heads in an `nn.Sequential` of which a method takes the layers one by one."""
    joins_argument: bool
    """Whether a method joins a layer that it is given with an upsampling before it."""
    reason: str
    """Why a method that calls layers cannot be rewritten; empty if each can."""


def chains_of(module: nn.Module) -> Chains:
    """What a twin of the module's class joins, and what it leaves alone."""
    roles: dict[str, str] = {}
    chains: list[tuple[str, list[Any]]] = []
    looped_over: list[Any] = []
    joins_argument, reason = False, ""
    module = _looked_at(module)
    for name, method in _methods(plain_class(type(module))).items():
        # what upsamples may do so before a layer that it is given
        if name in module.__dict__ or {*module._modules, "interpolate"}.isdisjoint(_names(method.__code__)):
            continue

        def role(source: str, method: FunctionType = method) -> str | None:
            found = _role(source, method, module)
            return found and roles.setdefault(source, found)

        try:
            _, sources, of_argument, reads = rewrite(method, role)
        except NotRewritableError as error:
            reason = f"{name}(): {error}"
            continue
        joins_argument = joins_argument or of_argument
        found_now = ((chain, _layers_now(chain, method, module)) for chain in sources)
        chains += [(chain, layers) for chain, layers in found_now if layers]
        looped_over += [layer for source in reads for layer in _heads_inside(source, method, module)]
    # of "(self.conv,)", but not of "(*self.layers,)"
    of_one = {source: source[1:-2] for source, _ in chains if source[1:-2] in roles and source[1] != "*"}
    joined = [chain for source, chain in chains if source not in of_one]
    others = {id(layer) for chain in joined for layer in chain}
    alone = {of_one[source]: chain[0] for source, chain in chains if source in of_one and id(chain[0]) not in others}
    joined += [chain for source, chain in chains if source in of_one and id(chain[0]) in others]
    apart = {id(layer): layer for layer in looped_over if id(layer) not in others}
    remaining = tuple(sorted((source, role) for source, role in roles.items() if source not in alone))
    return Chains(remaining, joined, list(alone.values()), list(apart.values()), joins_argument, reason)


def named(chain: list[Any], module: nn.Module) -> list[tuple[str, Any]]:
    """The layers of a chain, with the paths in the module of those that are modules."""
    paths = {child: path for path, child in module.named_modules()}
    return [(paths.get(layer, "") if isinstance(layer, nn.Module) else "", layer) for layer in chain]


def holds_layers(layer: Any) -> bool:
    """Which say themselves how they run."""
    return isinstance(layer, nn.Module) and bool(layer._modules) and not parametrize.is_parametrized(layer)


def steps_of(
    model: nn.Module, chains_in: Callable[[nn.Module], Iterable[list[Any]]]
) -> Iterator[tuple[str, nn.Module, list[Step]]]:
    """(path, module, its steps) of each fused module in a model, but of those whose layers another one runs among its own.

    Args:
        chains_in: gives the chains of layers in a module that is no Sequential.
    """
    found: list[tuple[str, nn.Module, list[Step]]] = []
    inside: set[nn.Module] = set()
    for path, module in model.named_modules():
        if isinstance(module, FusedSequential):
            inside.update(opened(module.children()))
            found.append((path, module, module.plan()))
        elif plain_class(type(module)) is not type(module):
            # a Sequential by itself has steps of its own
            chains = [c for c in chains_in(module) if len(c) > 1 or not isinstance(c[0], nn.Sequential)]
            inside.update(opened(layer for chain in chains for layer in chain))
            steps = [step for chain in chains for step in plan(list(flat(named(chain, module))))]
            found.append((path, module, steps))
    return ((path, module, steps) for path, module, steps in found if module not in inside)


def layers_left_plain(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(path, name, reason) of each layer that a fused module calls as it is."""

    def chains_in(module: nn.Module) -> list[list[Any]]:
        _, joined, alone, *_ = chains_of(module)
        return [*joined, *([layer] for layer in alone)]

    for path, _, steps in steps_of(model, chains_in):
        for step in steps:
            layer = step.layers[0]
            if step.kind is None and not holds_layers(layer):
                name = layer.name if isinstance(layer, Call) else type(layer).__name__
                yield f"{path}.{step.names[0]}".strip("."), name, step.reason


_twins: dict[tuple[type, Roles], Any] = {}


def twin_of(cls: type[nn.Module], roles: Roles) -> type[nn.Module]:
    """The subclass of `cls` that joins the layers with these roles: always the same one.

    Raises:
        TypeError: if the class refuses to be subclassed.
    """
    if (cls, roles) not in _twins:
        _twins[cls, roles] = _make_twin(cls, roles)
    return _twins[cls, roles]


class _Unannounced:
    """`__init_subclass__` of the class behind it is not told of a twin, whose name, say, a registry would take for a new class."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        if _Unannounced not in cls.__bases__:  # a class that somebody made of a twin
            super().__init_subclass__(**arguments)


def _make_twin(cls: type[nn.Module], roles: Roles) -> type[nn.Module]:
    # behind cls, FusedSequential takes the place of nn.Sequential alone
    bases = _Unannounced, cls, FusedSequential if runs_its_layers(cls) else Fused
    twin: Any = new_class(cls.__name__, bases, {"metaclass": _metaclass(type(cls))})  # type: ignore[arg-type]
    for name, method in _methods(cls).items():
        with contextlib.suppress(NotRewritableError):
            rewritten, chains, *_ = rewrite(method, dict(roles).get)
            if chains:
                method.__globals__[RUN_IN_TURN] = _run_in_turn
                setattr(twin, name, _Rewritten(twin, name, method, rewritten))

    def __reduce_ex__(self, protocol):  # noqa: N807
        # protocols before 2 name the class, by a name that is another's
        constructor, arguments, *rest = super(twin, self).__reduce_ex__(max(protocol, 2))
        if constructor is copyreg.__newobj__:  # type: ignore[attr-defined]
            return _new, (cls, roles, *arguments[1:]), *rest
        return constructor, arguments, *rest  # of the user's own __reduce__

    twin.__reduce_ex__ = __reduce_ex__
    twin._genimg_fast_plain_class = cls
    twin._genimg_fast_made_by = twin_of, (cls, roles)
    # all names are those of cls: libraries write them into the files that they save, and look a model's parts up by them
    twin.__module__, twin.__qualname__, twin.__doc__ = cls.__module__, cls.__qualname__, cls.__doc__
    return twin


@functools.cache
def _metaclass(of: Any) -> Any:
    """That of the twin of a class whose metaclass is `of`, such as ABCMeta."""
    if of is type or issubclass(of, FusedType):
        return FusedType if of is type else of
    metaclass = type(of.__name__, (FusedType, of), {})
    pickle_classes_of(metaclass)
    return metaclass


class _Rewritten:
    """A method of a twin, in which calls are joined for as long as the plain class has the method that it was made of."""

    def __init__(self, twin: type, name: str, method: FunctionType, rewritten: FunctionType):
        self.twin, self.plain, self.name, self.method = twin, twin.__bases__[1], name, method
        self.joined = f"_genimg_fast_joined_{name}"  # in the class, where torch.compile finds how to bind it
        setattr(twin, self.joined, rewritten)

    def __get__(self, module: Any, twin: Any = None) -> Any:
        of = twin if module is None else module
        if getattr(self.plain, self.name, None) is self.method:
            return getattr(of, self.joined)
        return getattr(super(self.twin, of), self.name)  # patched since


def _new(cls: type[nn.Module], roles: Roles, *arguments: Any) -> nn.Module:
    """An instance without state, for pickle."""
    twin = twin_of(cls, roles)
    return twin.__new__(twin, *arguments)


def _run_in_turn(functions: tuple, input: torch.Tensor, arguments: tuple | None, *later: Any) -> torch.Tensor:
    layers = _layers(functions, arguments)
    for part in later:
        if type(part) is list:
            layers += _layers(*part)
        else:
            layers.append(_as_layer(part))
    return run_in_turn(layers, input) if layers else input


def _layers(functions: tuple, arguments: tuple | None) -> list[Any]:
    if arguments is None:
        return [_as_layer(function) for function in reversed(functions)]
    turns = zip(reversed(functions), arguments, strict=True)
    return [_as_layer(function if more is None else (function, *more)) for function, more in turns]


def _as_layer(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value
    return Call(*value) if isinstance(value, tuple) else Call(value, (), {})


def _looked_at(module: nn.Module) -> nn.Module:
    """The module, for a look at its attributes: what a property assigns to it, such as a count, is lost."""
    try:
        copied = object.__new__(type(module))
    except TypeError:  # the class is one of Python's own types too
        return module
    copied.__dict__.update((n, dict(v) if type(v) is dict else v) for n, v in module.__dict__.items())
    return copied


def _value(source: str, method: FunctionType, module: nn.Module) -> Any:
    # among the globals, where a comprehension sees it
    return eval(source, {**method.__globals__, method.__code__.co_varnames[0]: module})


def _layers_now(chain: str, method: FunctionType, module: nn.Module) -> list[Any]:
    """Those of a chain of which each may stand under a condition; none where a condition asks for what is not there yet."""
    try:
        return [_as_layer(layer) for layer in _value(chain, method, module)]
    except Exception:  # of any kind, as in `_role`
        return []


def _role(source: str, method: FunctionType, module: nn.Module) -> str | None:
    try:
        value = _value(source.removeprefix("*"), method, module)
        layer = _as_layer(value)
    except Exception:  # there is no such attribute, or a property raises
        return None
    if source.startswith("*"):
        inside = list(value) if isinstance(value, (nn.ModuleList, nn.Sequential)) else []
        pays = (
            any(class_of(layer) in HEADS for layer in inside) or sum(isinstance(s, nn.Sequential) for s in inside) > 1
        )
        return HEAD if pays else None
    if class_of(layer) in HEADS:
        return HEAD
    if isinstance(layer, nn.Sequential):
        return SEQUENTIAL
    if doubles(layer) or pads_edge(layer):
        return BEFORE
    unset = layer == Call(None, (), {})  # type: ignore[arg-type]  # as in `if self.norm is not None: x = self.norm(x)`
    return AFTER if unset or activation_of(layer) or halves(layer) or may_pass_through(layer) else None


def _heads_inside(source: str, method: FunctionType, module: nn.Module) -> list[nn.Module]:
    """Of an `nn.Sequential` with this name, such as ``self.layers``: the layers that a fused call can start with."""
    name, *path = source.split(".")
    inside: Any = module if name == method.__code__.co_varnames[0] else None
    for child in path:
        inside = inside._modules.get(child) if isinstance(inside, nn.Module) else None
    layers = inside._modules.values() if isinstance(inside, nn.Sequential) else ()
    return [layer for layer in layers if class_of(layer) in HEADS]


def _names(code: CodeType) -> Iterator[str]:
    """The attributes and globals that a function, or a function inside it, mentions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _methods(cls: type[nn.Module]) -> dict[str, FunctionType]:
    """The methods of a class that are written in Python outside of PyTorch, but for special ones."""
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base) if not name.startswith("__"))
    methods = {name: inspect.getattr_static(cls, name) for name in names}
    return {
        name: method
        for name, method in methods.items()
        if type(method) is FunctionType
        and method.__code__.co_argcount
        and method.__module__ is not None  # torch.fx generated it, and may do so again
        and not method.__module__.startswith("torch.")
    }
