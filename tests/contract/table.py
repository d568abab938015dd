# SPDX-License-Identifier: MIT
"""Which property holds for what, and how: the table that the tests check and that docs/contract.md shows.

`python -m tests.contract.table` rewrites docs/contract.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from tests.contract import properties
from tests.contract.properties import Case
from tests.contract.subjects import SUBJECTS, Subject

PAGE = Path(__file__).resolve().parents[2] / "docs" / "contract.md"


class Cell(NamedTuple):
    kind: str
    note: str = ""
    """Why it refuses."""
    message: str = ""
    """A regular expression for what the error says."""


NATIVE = Cell("native")
PYTORCH = Cell("PyTorch")


def refuses(note: str, message: str) -> Cell:
    return Cell("refuses", note, message)


class Property(NamedTuple):
    name: str
    group: str
    check: Callable[[Case], None]
    cell: Cell
    """Of the subjects that `exceptions` does not name."""
    exceptions: dict[str, Cell] = {}  # noqa: RUF012  # NamedTuple has no default_factory; nobody changes it
    slow: bool = False
    """Whether the quick tests check one variant of each subject alone."""
    needs_cuda: bool = False


_MODELS = ("a fused model, training", "a fused model, eval")
_PENALTY = "gradient_penalty"

_NO_AUTOGRAD_INSIDE = refuses(
    "PyTorch transforms no function that calls `torch.autograd.grad` itself",
    r"You are attempting to call Tensor.requires_grad_\(\)|autograd.grad",
)
_NO_COMPILED_AUTOGRAD = refuses(
    "PyTorch compiles no call of `torch.autograd.grad` into one graph; without `fullgraph=True` it breaks the graph there",
    "using `torch.autograd.grad`|Tensor.requires_grad_",
)
_BATCHED_STATISTICS = refuses(
    "running statistics that all examples share cannot be updated by each of them, in PyTorch neither: batch them too, or "
    "`track_running_stats=False`",
    "running_mean and running_var: batch them too|running_mean or running_var, which will be updated in place",
)

PROPERTIES = [
    Property("gradcheck", "Derivatives", properties.gradcheck, NATIVE),
    Property("gradgradcheck", "Derivatives", properties.gradgradcheck, NATIVE),
    Property("tensors that come of one another, hooks", "Derivatives", properties.tells_uses_apart, NATIVE),
    Property("torch.func.grad", "Derivatives", properties.has_func_grad, PYTORCH, {_PENALTY: _NO_AUTOGRAD_INSIDE}),
    Property("jvp, forward-mode AD", "Derivatives", properties.has_jvp, PYTORCH, {_PENALTY: _NO_AUTOGRAD_INSIDE}),
    Property(
        "torch.vmap",
        "Derivatives",
        properties.vmaps,
        NATIVE,
        {
            _PENALTY: refuses(
                "it draws random numbers: PyTorch wants to be told `randomness=`", "randomness error mode"
            ),
            _MODELS[0]: _BATCHED_STATISTICS,
        },
    ),
    Property("activation checkpointing", "Derivatives", properties.checkpoints, NATIVE),
    Property(
        "torch.compile, static shapes",
        "Compiling and exporting",
        properties.compiles,
        NATIVE,
        {_PENALTY: _NO_COMPILED_AUTOGRAD},
        slow=True,
    ),
    Property(
        "torch.compile, dynamic shapes",
        "Compiling and exporting",
        properties.compiles_with_dynamic_shapes,
        NATIVE,
        {_PENALTY: _NO_COMPILED_AUTOGRAD},
        slow=True,
    ),
    Property("torch.export", "Compiling and exporting", properties.exports, PYTORCH, slow=True),
    Property("ONNX, in ONNX Runtime", "Compiling and exporting", properties.exports_to_onnx, PYTORCH, slow=True),
    Property(
        "autocast, bfloat16",
        "Modes and devices",
        partial(properties.autocasts, dtype=torch.bfloat16),
        NATIVE,
    ),
    Property(
        "autocast, float16",
        "Modes and devices",
        partial(properties.autocasts, dtype=torch.float16),
        NATIVE,
    ),
    Property("deterministic algorithms", "Modes and devices", properties.is_deterministic, NATIVE),
    Property(
        "inference mode",
        "Modes and devices",
        properties.runs_in_inference_mode,
        NATIVE,
        {
            _PENALTY: refuses(
                "inference mode records no gradient, which the penalty is of",
                "torch.inference_mode records no gradient",
            )
        },
    ),
    Property("subclass of Parameter", "Modes and devices", properties.takes_a_subclass_of_parameter, NATIVE),
    Property("meta device", "Modes and devices", properties.runs_on_meta, PYTORCH),
    Property("CUDA graph", "Modes and devices", properties.captures_in_a_cuda_graph, NATIVE, needs_cuda=True),
    Property("another CUDA stream", "Modes and devices", properties.runs_on_another_stream, NATIVE, needs_cuda=True),
]


def cell(property: Property, subject: Subject) -> Cell:
    return property.exceptions.get(subject.name, property.cell)


_HEAD = """\
# What PyTorch's users rely on

`python -m tests.contract.table` writes this page from the table that `tests/contract` checks, cell by cell; a test fails where the page
is out of date. Where a cell holds, value and gradients equal those of plain PyTorch. "Native" means the CPU kernels. Every cell
is checked for CUDA too: on a GPU where there is one, else on one that `tests/simulated_gpu` simulates, which has the operators and
kernels of ours but not cuDNN.

- **native**: holds on the native kernels.
- PyTorch: holds, and PyTorch's own operators compute it; under `use_backend("native")` the functions raise and say why.
- refuses: raises an error; the note says why.
- CUDA: a question for a GPU alone, checked there in the same way.
"""

_MEANINGS = """\
`torch.compile` is with `fullgraph=True`, forward and backward; with dynamic shapes one graph serves all batch sizes. `torch.export` and
ONNX export leave the batch size free and write standard operators only, so that the file runs without this package. PyTorch's ONNX
exporter writes inference, even of a model in training. Noise is checked with a given seed, checkpointing both with
`use_reentrant=True` and without. Under autocast convolutions give the lower dtype, for which the CPU kernels round what they compute in
float32; losses and noise stay in float32, and batch normalisation in the dtype of its input, as in PyTorch. Determinism is bit for
bit, under `torch.use_deterministic_algorithms(True)`.

## Several processes

Checked with two and three processes (gloo on the CPU) in `tests/contract/test_processes.py`:

- `DistributedDataParallel` gives a fused model the gradients that it gives the plain one; without batch statistics they are those of one
  process on the joined batch.
- `nn.SyncBatchNorm` is fused, with the activation after it, and trains on the CPU too, which PyTorch's own refuses: the gradients, weights
  and running statistics are those of one process on the joined batch, also where the shares differ in size, or one is empty, and where the
  processes run on different backends. So they are under `torch.compile`, in one graph, and with the derivatives of a recorded backward.
  The processes talk once forward and once backward. In `eval()`, and in a single process, it fuses into the convolution as `BatchNorm2d`
  does. Transforms of `torch.func` and forward-mode AD are refused, since collectives have no such derivatives. While it is fused it is
  no instance of `nn.SyncBatchNorm`, since `DistributedDataParallel` refuses those on the CPU: convert first, then `fuse`, then wrap.
- FSDP2 (`fully_shard`) wraps a fused model, and `fuse` takes a wrapped one: the same gradients, the same training.

## Training

A WGAN-GP pair, fused, trains to the weights of the plain pair (`tests/contract/test_wgan_gp.py`).

## Where a fused model is another than the plain one

- In inference on the CPU weights are kept packed. A change is noticed by the parameter's version counter, which optimizers,
  `load_state_dict` and writes under `torch.no_grad()` advance. A write that bypasses the counter, through `weight.data`,
  `weight.detach()` or NumPy, is noticed by samples: one value of each input channel, each output channel and each tap. A change of
  many weights is, that of a whole channel unless its sample stays what it is (a pruned 0 that is doubled), that of single values may
  not be. Edit such under `torch.no_grad()`.
- What is kept holds the tensors. `torch.utils.swap_tensors`, and conversions under
  `torch.__future__.set_swap_module_params_on_conversion(True)`, refuse the parameters of a model that has run in inference: `unfuse`
  it first, which lets go of all, and `fuse` it again after that.
- On the CPU convolutions of float32 by Toom-Cook (Winograd) products mix the values of a tile of pixels: one that is a million times
  larger than its neighbours costs them digits, one that is infinite or NaN makes the outputs of its whole tile NaN, and values near
  float32's largest overflow sooner. `genimg_fast.backends.cpu.allow_winograd = False` keeps to plain sums.
- Arguments are checked before anything runs, so a wrong dtype, shape or number of channels is a `TypeError` or a `ValueError` where
  PyTorch's own is often a `RuntimeError`.
- Where a convolution is followed by `LeakyReLU` without a batch normalisation between them, changing the output in place makes
  `backward()` raise. PyTorch does the same for the other activations and for an in-place `LeakyReLU`.
- Backward makes activations anew of what the convolutions gave, where PyTorch has saved them. What changes a normalisation between forward
  and backward without advancing a version counter, a write to `bn.weight.data`, or a pass in training mode after one in `eval()`, which
  moves the running statistics, so reaches the gradient of the weight of the convolution after it as well; PyTorch's own reaches those
  before it. Neither raises an error: let backward come first.
- Activation checkpointing that is not reentrant runs forward again only until it has what backward needs. PyTorch's batch normalisations
  have then updated their running statistics twice; those of the fused call that ends the checkpointed part have done so once.
- `torch.jit.script` wants the plain model: `unfuse` it first. `torch.jit.trace`, `torch.fx` and `torch.export` take it as it is.
- Inside a mode (`TorchFunctionMode`, `TorchDispatchMode`, so `FlopCounterMode` and `make_fx`) a fused model calls its layers as they are:
  the mode sees PyTorch's functions and operators. So does a layer whose methods were replaced on the instance, or one with a parameter
  of a class with its own `__torch_function__`. What is replaced in `torch.nn` and `torch.nn.functional` themselves, `F.conv2d` or
  `nn.Conv2d.forward` say, is not seen: `unfuse` the model.
- A file with methods in which `fuse` joins calls gets one more global, `_genimg_fast_run_in_turn`: the joined methods call it.
- Fused modules are instances of the classes they were of, but for `SyncBatchNorm`; `type(module)` is a subclass, with the name of the
  class, but for `FusedSequential`. Where it takes the place of a class of `torch.nn` the two are equal: `type(layer) == nn.Conv2d` holds,
  and `type(layer)` is found among classes that a tool knows; not so in a dictionary or a set that is read inside `torch.compile`. What
  asks with `is`, as PyTorch's quantisation and Opacus do, wants the plain model: `unfuse` it.
"""


def page() -> str:
    """docs/contract.md."""
    notes: list[str] = []
    groups: dict[str, list[Property]] = {}
    for property in PROPERTIES:
        groups.setdefault(property.group, []).append(property)
    tables = [f"## {group}\n\n{_table(members, notes)}\n" for group, members in groups.items()]
    numbered = "".join(f"{i}. {note[0].upper()}{note[1:]}.\n" for i, note in enumerate(notes, 1))
    return "\n".join([_HEAD, *tables, numbered, _MEANINGS])


def _table(members: list[Property], notes: list[str]) -> str:
    lines = [["", *(property.name for property in members)], ["---"] * (len(members) + 1)]
    for subject in SUBJECTS:
        name = subject.name if subject.name.startswith("a ") else f"`{subject.name}`"
        lines.append([name, *(_text(property, cell(property, subject), notes) for property in members)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(property: Property, cell: Cell, notes: list[str]) -> str:
    if property.needs_cuda:
        return "CUDA"
    if not cell.note:
        return f"**{cell.kind}**" if cell is NATIVE else cell.kind
    if cell.note not in notes:
        notes.append(cell.note)
    return f"{cell.kind} ({notes.index(cell.note) + 1})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
