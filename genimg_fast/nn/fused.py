# SPDX-License-Identifier: MIT
"""What the classes that `fuse` gives to modules have in common: they pass for the classes that it found."""

from __future__ import annotations

import copyreg
from typing import Any


def plain_class(cls: type) -> type:
    """The class that `fuse` made `cls` of, or `cls` itself."""
    return vars(cls).get("_genimg_fast_plain_class", cls)


class FusedType(type):
    """Of classes that equal those of `torch.nn` whose place they take.

    Many tools ask ``type(module) == nn.Conv2d``, or look up ``type(module)`` among the classes that they know: initialisation,
    quantisation, counters of FLOPs, per-sample gradients.  The class of a user is not equalled: torch.compile looks for it among
    the bases of its twin, to find the method that ``super()`` means.  Inside torch.compile dictionaries and sets of classes do not
    find them, since those go by identity there.
    """

    def __eq__(cls, other: object) -> bool:
        if not isinstance(other, type):
            return NotImplemented
        return _in_torch(cls) is _in_torch(other)

    def __hash__(cls) -> int:
        return type.__hash__(_in_torch(cls))


def _in_torch(cls: type) -> type:
    plain = plain_class(cls)
    return plain if str(plain.__module__).startswith("torch.nn.") else cls


def pickle_classes_of(metaclass: type) -> None:
    """A fused class has the name of another: it is pickled as the function that makes it, with arguments."""
    copyreg.pickle(metaclass, _reduce_class)  # type: ignore[arg-type]


def _reduce_class(cls: type) -> Any:
    return vars(cls).get("_genimg_fast_made_by", cls.__qualname__)


pickle_classes_of(FusedType)


class Fused(metaclass=FusedType):
    """What all fused modules have."""

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError("torch.jit.script does not compile fused modules: call genimg_fast.unfuse(model) first")
