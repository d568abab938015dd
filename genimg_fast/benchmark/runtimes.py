# SPDX-License-Identifier: MIT
"""What a workload can run on.  Each runtime takes the plain `torch.nn` model and makes of it what its users would."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

import genimg_fast
from genimg_fast import _extension, functional
from genimg_fast.backends import cuda
from genimg_fast.benchmark import plain
from genimg_fast.sampler import CapturedGraph

Module = TypeVar("Module", bound=nn.Module)
Inference = Callable[[], Any]
"""Runs a model once on the input bound to it, without gradients."""


class Runtime:
    """Eager PyTorch, and the base of the others.

    Attributes:
        label: for tables and charts.
        package: that must be installed.
        obeys_isa: whether it can be held to a narrower instruction set than the CPU's.
        functional: the losses and blocks, called as `genimg_fast.functional` names them.
    """

    label: ClassVar[str] = "eager"
    package: ClassVar[str] = "torch"
    obeys_isa: ClassVar[bool] = True
    functional: ModuleType = plain

    def __init__(self, device: str = "cpu", threads: int = 1, isa: str | None = None) -> None:
        self.device, self.threads, self.isa = torch.device(device), threads, isa
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # as whoever wants speed sets it

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.package) is not None

    def convert(self, module: Module) -> Module:
        """The module in the form that this runtime is fastest with; may change it in place."""
        return module

    def compile(self, function: Callable) -> Callable:
        return function

    def layout(self, images: torch.Tensor) -> torch.Tensor:
        """Images in the memory order that users of this runtime keep them in."""
        return images

    def inference(self, model: nn.Module, x: torch.Tensor) -> Inference:
        compiled, x = self.compile(self.convert(model)), self.layout(x)
        return lambda: compiled(x)


class Ours(Runtime):
    """The plain model through `genimg_fast.fuse`."""

    label = "genimg_fast"
    functional = functional

    def __init__(self, device: str = "cpu", threads: int = 1, isa: str | None = None) -> None:
        super().__init__(device, threads, isa)
        if isa is not None:
            _extension.set_cpu_isa(isa)

    def convert(self, module: Module) -> Module:
        genimg_fast.fuse(module)
        return module

    def inference(self, model: nn.Module, x: torch.Tensor) -> Inference:
        """On CUDA one graph, as `genimg_fast.Sampler` runs it and torch.compile's best modes do."""
        if self.device.type != "cuda":
            return super().inference(model, x)
        graph = CapturedGraph(self.convert(model), x)

        def replay() -> torch.Tensor:
            graph.input.copy_(x)
            return graph.replay()

        return replay


class OursByWgmma(Ours):
    label = "genimg_fast, wgmma"

    def __init__(self, device: str = "cpu", threads: int = 1, isa: str | None = None) -> None:
        super().__init__(device, threads, isa)
        cuda.allow_wgmma = True


class ChannelsLast(Runtime):
    label = "eager, channels_last"

    def convert(self, module: Module) -> Module:
        return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def layout(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


class FoldedChannelsLast(ChannelsLast):
    """Eager with each eval-mode batch normalisation folded into the convolution before it.  Its output stays channels_last."""

    label = "eager, BN folded, channels_last"

    def convert(self, module: Module) -> Module:
        for sequential in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
            fold_batch_norm(sequential)
        return super().convert(module)


class TorchCompile(Runtime):
    label = "torch.compile"
    mode: ClassVar[str | None] = None

    def __init__(self, device: str = "cpu", threads: int = 1, isa: str | None = None) -> None:
        super().__init__(device, threads, isa)
        from torch._inductor import config

        if isa == "avx2":
            config.cpp.simdlen = 256

    def compile(self, function: Callable) -> Callable:
        torch._dynamo.reset()  # another batch size would otherwise be taken as a sign of dynamic shapes
        return torch.compile(function, mode=self.mode)


class MaxAutotune(TorchCompile):
    label = "torch.compile, max-autotune"
    mode = "max-autotune"


class MaxAutotuneChannelsLast(ChannelsLast, MaxAutotune):
    label = "torch.compile, max-autotune, channels_last"


class ReduceOverhead(TorchCompile):
    label = "torch.compile, reduce-overhead"
    mode = "reduce-overhead"


class InductorFreezing(TorchCompile):
    """torch.compile that treats the weights as constants, for inference."""

    label = "Inductor, freezing"

    def compile(self, function: Callable) -> Callable:
        from torch._inductor import config

        config.freezing = True
        return super().compile(function)


class OnnxRuntime(Runtime):
    label = "ONNX Runtime"
    package = "onnxruntime"
    obeys_isa = False  # its kernels are chosen by CPUID; there is no option

    def inference(self, model: nn.Module, x: torch.Tensor) -> Inference:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        # Its threads spin within a run as by default, and stop at its end, so that they do not disturb the next worker.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with tempfile.TemporaryDirectory() as folder:
            session = onnxruntime.InferenceSession(
                export_onnx(model, x, Path(folder)), options, providers=["CPUExecutionProvider"]
            )
        feed = {session.get_inputs()[0].name: x.numpy()}
        return lambda: session.run(None, feed)[0]


class OpenVINO(Runtime):
    label = "OpenVINO"
    package = "openvino"

    def inference(self, model: nn.Module, x: torch.Tensor) -> Inference:
        import openvino

        properties = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # without it, bfloat16 where the CPU has matrix units for it
        }
        with tempfile.TemporaryDirectory() as folder:
            compiled = openvino.Core().compile_model(export_onnx(model, x, Path(folder)), "CPU", properties)
        request, feed = compiled.create_infer_request(), [x.numpy()]
        return lambda: request.infer(feed, share_outputs=True)[0]


RUNTIMES: dict[str, type[Runtime]] = {
    "ours": Ours,
    "ours_by_wgmma": OursByWgmma,
    "eager": Runtime,
    "channels_last": ChannelsLast,
    "folded_channels_last": FoldedChannelsLast,
    "torch_compile": TorchCompile,
    "max_autotune": MaxAutotune,
    "max_autotune_channels_last": MaxAutotuneChannelsLast,
    "reduce_overhead": ReduceOverhead,
    "inductor_freezing": InductorFreezing,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVINO,
}


def isa_environment(isa: str | None) -> dict[str, str]:
    """Environment variables that hold oneDNN (PyTorch's and OpenVINO's), ATen and MKL to `isa`; None: as the CPU is.

    Raises:
        ValueError: for an instruction set other than "avx2".
    """
    if isa is None:
        return {}
    if isa != "avx2":
        raise ValueError(f"isa is {isa!r}; the runtimes can be held to 'avx2' alone")
    return {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def fold_batch_norm(sequential: nn.Sequential) -> None:
    """Folds each eval-mode BatchNorm2d into the convolution before it, in place; an Identity takes its index."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for i in range(len(sequential) - 1):
        conv, bn = sequential[i], sequential[i + 1]
        if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(bn, nn.BatchNorm2d):
            sequential[i] = fuse_conv_bn_eval(conv, bn, transpose=isinstance(conv, nn.ConvTranspose2d))
            sequential[i + 1] = nn.Identity()


def export_onnx(model: nn.Module, x: torch.Tensor, folder: Path) -> str:
    path = str(folder / "model.onnx")
    with (
        warnings.catch_warnings()
    ):  # the newer exporter writes the same graph, in ten times as long, with another package
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17)
    return path
