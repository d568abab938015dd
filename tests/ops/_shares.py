# SPDX-License-Identifier: MIT
"""What each of three processes does for test_sync_batch_norm_act.py: a function on its share of a joined batch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from genimg_fast import use_backend
from genimg_fast.functional import sync_batch_norm_act
from tests import _cases

PROCESSES = 3
MOMENTUM, SLOPE = 0.3, 0.2


class Case(NamedTuple):
    shares: tuple[int, ...] = (3, 2, 1)
    """Examples of each process; of the two that talk to each other, if there are two."""
    shape: tuple[int, ...] = (5, 4, 4)
    """Of an example."""
    dtype: torch.dtype = torch.float64
    activation: str = "none"
    affine: bool = True
    tracks: bool = True
    offset: float = 0.0
    """The mean, of values whose deviation is about 1."""
    channels_last: bool = False
    backend: str = "native"
    float32_parameters: bool = False
    """With a half-precision input."""
    twice: bool = False
    """Also the gradients of the sum of the squares of the gradients."""
    last_gets_no_gradient: bool = False
    """Not even zeros: the output of the last process is used for nothing that is differentiated."""


Function = Callable[..., torch.Tensor]
Results = dict[str, torch.Tensor]


def run(case: Case, function: Function, examples: slice, dtype: torch.dtype | None = None) -> Results:
    """`function` on these examples of the joined batch: outputs, gradients of its weighted sum, running statistics.

    Args:
        dtype: to compute in instead of the case's, with the values that they have in the case's.
    """
    channels, whole = case.shape[0], (sum(case.shares), *case.shape)
    of_parameters = torch.float32 if case.float32_parameters else case.dtype

    def drawn(shape: tuple[int, ...], seed: int, of: torch.dtype = of_parameters) -> torch.Tensor:
        values = _cases.randn(shape, seed=seed)
        return (values + case.offset if seed == 0 else values).to(of).to(dtype or of)

    input = drawn(whole, 0, case.dtype)[examples]
    if case.channels_last:
        input = input.contiguous(memory_format=torch.channels_last)
    leaves = {"input": input.requires_grad_()}
    if case.affine:
        leaves |= {
            "weight": (drawn((channels,), 1) + 0.5).requires_grad_(),
            "bias": drawn((channels,), 2).requires_grad_(),
        }
    names = ("running_mean", "running_var") if case.tracks else ()
    running = {name: drawn((channels,), 3 + i).square() for i, name in enumerate(names)}
    given = leaves["input"]
    if case.twice:
        given = 1 * given
        given.register_hook(lambda gradient: 2 * gradient)  # which a backward that is recorded runs once, too
    output = function(
        given, running.get("running_mean"), running.get("running_var"), leaves.get("weight"), leaves.get("bias"),
        momentum=MOMENTUM, activation=case.activation, negative_slope=SLOPE,
    )  # fmt: skip
    upstream = (_cases.randn(whole, torch.float64, 5) + 2).to(output.dtype)[examples]
    if case.last_gets_no_gradient:
        of_last = sum(case.shares[:-1]) - (examples.start or 0)
        upstream[of_last:] = 0
        output = _NoGradient.apply(output) if of_last == 0 else output
    found = torch.autograd.grad(output, list(leaves.values()), upstream, create_graph=case.twice)
    results = {"output": output, **{f"gradient of {name}": g for name, g in zip(leaves, found, strict=True)}, **running}
    if case.twice:  # what weight and bias get depends on all processes, but is a sum over them in the first order alone
        penalty = found[0].square().sum()
        results["second gradient of input"], *more = torch.autograd.grad(penalty, [leaves["input"], leaves["weight"]])
        results["second gradient of weight"] = more[0]
    return {name: t.detach() for name, t in results.items()}


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input):
        return input.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def examples_of(case: Case, rank: int) -> slice:
    first = sum(case.shares[:rank])
    return slice(first, first + case.shares[rank])


class _Counted:
    """The collectives that are called, by name."""

    def __enter__(self) -> list[str]:
        self.names: list[str] = []
        self.originals = {name: getattr(dist, name) for name in ("all_gather", "all_reduce")}
        for name, original in self.originals.items():

            def counting(*args, name=name, original=original, **kwargs):
                self.names.append(name)
                return original(*args, **kwargs)

            setattr(dist, name, counting)
        return self.names

    def __exit__(self, *_) -> None:
        for name, original in self.originals.items():
            setattr(dist, name, original)


def main(rank: int, folder: str, cases: dict[str, Case]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=10)
    )
    pair = dist.new_group([0, 1])
    found: dict[str, Results] = {}
    collectives: dict[str, list[str]] = {}
    for name, case in cases.items():
        group = pair if len(case.shares) == 2 else None
        if rank >= len(case.shares):
            continue

        def function(*args, group=group, **kwargs):
            return sync_batch_norm_act(*args, process_group=group, **kwargs)

        backend = case.backend if case.backend != "mixed" else ("native", "reference", "auto")[rank]
        with use_backend(backend), _Counted() as collectives[name]:
            found[name] = run(case, function, examples_of(case, rank))
    torch.save((found, collectives), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
