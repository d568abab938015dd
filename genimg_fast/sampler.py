# SPDX-License-Identifier: MIT
"""Streams batches of images from a trained generator: on a GPU its whole forward pass is one CUDA graph.

A fused DCGAN generator of 64 images takes a GPU less time than the CPU needs to launch its kernels one by one.  The graph
is launched at once, and the CPU runs ahead of the GPU until the images are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral

import torch
from torch import nn

from genimg_fast import _backend
from genimg_fast.models import ImageModel
from genimg_fast.ops import _packed

# In training they mix the images of a batch, keep statistics or draw; containers and activations do not mind.
_DEPENDS_ON_MODE = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
_WARM_UPS = 3  # cuDNN and the allocator settle in the first passes


class Sampler:
    """Images that a model in eval mode makes of z ~ N(0, I), in batches of one size.

    ``Sampler(model, 64, generator=g).sample(64)`` equals ``model.sample(64, generator=g)``.  On a GPU the pass is captured in
    a CUDA graph at the first batch, and anew when a parameter or buffer has changed; writes through ``weight.data`` go unseen.
    On the CPU the model is called.  The model runs in the dtype of its parameters, also under autocast.  Nothing here waits for
    the GPU but `stream`, for the batch that it hands out.  Use a sampler from one thread and one CUDA stream.

    Args:
        model: an `ImageModel`, or any module of one input that turns latents (N, *latent_shape) into images.
        batch_size: images in a batch.
        latent_shape: of one latent; an `ImageModel` knows its own.
        generator: draws the noise, in float32 on its own device: a CPU generator gives the same noise wherever the model
            is, one on the model's device is faster.  Default: that of the model's device, which `torch.manual_seed` seeds.

    Raises:
        TypeError: if model is not a module, latent_shape is missing, or an argument is of another type.
        ValueError: for a batch_size below 1, a model without parameters or a generator on a third device; at every batch if
            the model, or a batch normalisation or dropout in it, is in training mode.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        *,
        latent_shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Sampler: model must be a torch.nn.Module, got {type(model).__name__}")
        if latent_shape is None:
            if not isinstance(model, ImageModel):
                raise TypeError(f"Sampler: latent_shape must be given for a {type(model).__name__}, e.g. (100, 1, 1)")
            latent_shape = model.latent_shape
        _check_count("batch_size", batch_size)
        if not isinstance(latent_shape, Sequence) or not all(isinstance(n, Integral) and n > 0 for n in latent_shape):
            raise TypeError(f"Sampler: latent_shape must be several integers, e.g. (100, 1, 1), got {latent_shape!r}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"Sampler: generator must be a torch.Generator, got {type(generator).__name__}")
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise ValueError(f"Sampler: the {type(model).__name__} has no parameters, which tell device and dtype")
        if generator is not None and generator.device.type not in ("cpu", parameter.device.type):
            raise ValueError(
                f"Sampler: generator is on {generator.device} and the model on {parameter.device}; "
                "it must be on the CPU or on the model's device"
            )
        self.model, self.batch_size, self.generator = model, batch_size, generator
        self._forward = model.latent_to_images if isinstance(model, ImageModel) else model
        self._shape = (batch_size, *latent_shape)
        self._graph: CapturedGraph | None = None
        self._state: list[object] = []

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Batches (batch_size, C, H, W) on the model's device, without end; each is the caller's to keep."""
        while True:
            yield self._next(self.batch_size)

    def sample(self, n: int) -> torch.Tensor:
        """`n` images, (n, C, H, W) on the model's device.  Noise is drawn for whole batches.

        Raises:
            ValueError: if n is below 1.
        """
        return torch.cat(list(self._batches(n)))

    def stream(self, n: int) -> Iterator[torch.Tensor]:
        """`n` images in batches on the CPU, the last one smaller if need be: what to write to files while more are made.

        The GPU makes the next batch, and copies it into page-locked memory, while the caller works on this one.

        Raises:
            ValueError: if n is below 1.
        """
        _check_count("n", n)
        return self._stream(n)

    def _stream(self, n: int) -> Iterator[torch.Tensor]:
        waiting: tuple[torch.Tensor, torch.cuda.Event] | None = None
        for images in self._batches(n):
            if not images.is_cuda:
                yield images
                continue
            following = _copy_to_host(images)
            if waiting is not None:
                yield _arrived(*waiting)
            waiting = following
        if waiting is not None:
            yield _arrived(*waiting)

    def _batches(self, n: int) -> Iterator[torch.Tensor]:
        _check_count("n", n)
        for start in range(0, n, self.batch_size):
            yield self._next(min(self.batch_size, n - start))

    @torch.no_grad()
    def _next(self, count: int) -> torch.Tensor:
        """The first `count` images of the next batch."""
        if self.model.training:
            raise ValueError("Sampler: the model is in training mode; call model.eval() first")
        if name := _in_training(self.model):
            raise ValueError(f"Sampler: {name} of the model is in training mode; call model.eval() first")
        parameter = next(self.model.parameters())
        noise = self._draw(parameter.device)
        with torch.autocast(parameter.device.type, enabled=False):
            if not parameter.is_cuda:
                return self._forward(noise[:count].to(parameter))
            with torch.cuda.device(parameter.device):
                graph = self._captured(parameter)
                graph.input.copy_(noise, non_blocking=True)
                return graph.replay()[:count].clone()

    def _draw(self, device: torch.device) -> torch.Tensor:
        source = device if self.generator is None else self.generator.device
        # torch's allocator of page-locked memory does not hand it out again before the copy to the GPU is over
        pinned = source.type == "cpu" and device.type == "cuda"
        return torch.randn(self._shape, generator=self.generator, device=source, pin_memory=pinned)

    def _captured(self, parameter: torch.Tensor) -> CapturedGraph:
        state: list[object] = [_backend.current_backend()]
        for t in (*self.model.parameters(), *self.model.buffers()):
            state += (t.data_ptr(), None if t.is_inference() else t._version)
        if self._graph is None or state != self._state:
            self._graph = None  # its memory serves the next one
            self._graph = CapturedGraph(self._forward, parameter.new_zeros(self._shape))
            self._state = state
        return self._graph


class CapturedGraph:
    """A function without gradients as a CUDA graph: `replay` computes it anew from what `input` holds."""

    @torch.no_grad()
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor) -> None:
        self.input = example.clone()
        self._function = function  # whose parameters the graph reads
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with _packed.kept_on_cuda() as self._packed_weights:  # which the graph reads
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    function(self.input)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: a DataLoader's thread may call CUDA meanwhile
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                self._output = function(self.input)
        self._read_on: torch.cuda.Stream | None = None

    def replay(self) -> torch.Tensor:
        """The output, in memory that the next replay overwrites."""
        stream = torch.cuda.current_stream()
        if stream != self._read_on:
            for (
                weight
            ) in self._packed_weights:  # of another stream, which must not reuse their memory while this one reads it
                weight.record_stream(stream)
            self._read_on = stream
        self._graph.replay()
        return self._output


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, Integral):
        raise TypeError(f"Sampler: {name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"Sampler: {name} must be at least 1, got {value}")


def _in_training(module: nn.Module, prefix: str = "") -> str:
    """The path of the first layer inside that depends on its mode and is in training; empty if none is."""
    # named_modules() takes five times as long, in each batch
    for name, child in module._modules.items():
        if child is not None and child.training and isinstance(child, _DEPENDS_ON_MODE):
            return prefix + name
        if child is not None and child._modules and (found := _in_training(child, f"{prefix}{name}.")):
            return found
    return ""


def _copy_to_host(images: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
    """Starts the copy; (its target, what is to be waited for)."""
    host = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    host.copy_(images, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(images.device))
    return host, copied


def _arrived(host: torch.Tensor, copied: torch.cuda.Event) -> torch.Tensor:
    copied.synchronize()
    return host
