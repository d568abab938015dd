# SPDX-License-Identifier: MIT
"""A model's generator as a file for other runtimes, in standard operators: nobody who runs it needs this package."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import torch
from torch import nn

from genimg_fast._files import write_atomically
from genimg_fast.models.base import ImageModel
from genimg_fast.nn import unfuse

FORMATS = ("onnx", "torch-export")


def export(model: ImageModel, path: Path, format: str) -> None:
    """Writes ``model.latent_to_images`` of the model in eval mode: "latents" (N, *latent_shape) to "images" (N, C, H, W).

    N is free.  The model itself is left as it is.

    Args:
        model: its weights must be float32, which every runtime knows.
        path: the file to write.
        format: "onnx", for ONNX Runtime and its like, or "torch-export", for ``torch.export.load``.

    Raises:
        ValueError: for another format, or weights of another dtype.
        ImportError: for ONNX, without the packages of the extra "export".
        OSError: if the file cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(f"export: format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        got = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"export: weights must be torch.float32, got {got}; convert the model with .float()")
    program = _program(model)
    content = _onnx(program) if format == "onnx" else _torch_export(program)
    write_atomically(path, lambda file: file.write(content))


class _Generator(nn.Module):
    def __init__(self, model: ImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.latent_to_images(latents)


def _program(model: ImageModel) -> torch.export.ExportedProgram:
    plain = unfuse(copy.deepcopy(model)).cpu().eval().requires_grad_(False)
    example = torch.zeros(2, *model.latent_shape)  # not 1, which torch.export would take for a constant
    batch = {"latents": {0: torch.export.Dim("N")}}
    return torch.export.export(_Generator(plain), (example,), dynamic_shapes=batch)


def _torch_export(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX needs further packages: pip install 'genimg-fast[export]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the exporter, about itself
        exported = torch.onnx.export(program, (), input_names=["latents"], output_names=["images"], verbose=False)
    assert exported is not None
    return exported.model_proto.SerializeToString()
