# SPDX-License-Identifier: MIT
"""What a model runs on, op by op, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from genimg_fast import _backend
from genimg_fast._table import format_table
from genimg_fast.nn.twin import layers_left_plain


@dataclass(frozen=True, repr=False)
class ExplainReport:
    """The op calls of one forward pass, and the layers that make none.  Prints as tables."""

    calls: tuple[_backend.Decision, ...]
    plain_layers: tuple[tuple[str, str, str], ...]
    """(path, class, reason) of each layer that a fused module calls as it is."""

    def __str__(self) -> str:
        if not self.calls:
            tables = ["No genimg_fast op was called; genimg_fast.fuse(model) makes a model call them."]
        else:
            cells = [(call.op, "native" if call.native else "reference", call.reason) for call in self.calls]
            tables = [format_table(("op", "runs on", "why not native"), cells)]
        if self.plain_layers:
            tables.append(format_table(("layer", "runs as", "why not fused"), self.plain_layers))
        return "\n\n".join(tables)

    __repr__ = __str__


def explain(model: nn.Module, example: torch.Tensor | tuple, **kwargs: Any) -> ExplainReport:
    """Runs the model once and tells what each op call ran on, and why if not on the native kernels.

    The run leaves no trace in the parameters, in the buffers, of which it takes copies (running statistics stay as they are), or
    in PyTorch's random generators, which are restored.  The model stays in its mode, since that decides what runs: in training it
    records gradients, and runs what a training step does, in eval it records none.

    Args:
        model: any module.
        example: its input; a tuple is several arguments.
        kwargs: its keyword arguments.

    Returns:
        A report that prints as tables.

    Raises:
        TypeError: if model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be a torch.nn.Module, got {type(model).__name__}")
    arguments = example if isinstance(example, tuple) else (example,)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = [
        t for t in (*model.parameters(), *buffers.values(), *arguments, *kwargs.values()) if isinstance(t, torch.Tensor)
    ]
    gpus = {t.get_device() for t in tensors if t.is_cuda}  # the default is all, which would make a context on each
    records = torch.is_grad_enabled() and model.training
    with torch.set_grad_enabled(records), torch.random.fork_rng(gpus), _backend.record_decisions() as decisions:
        torch.func.functional_call(model, buffers, arguments, kwargs)
    return ExplainReport(tuple(decisions), tuple(layers_left_plain(model)))
