# SPDX-License-Identifier: MIT
"""What torch.cuda needs a GPU for, for the device of device.cpp."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from tests.simulated_gpu import VARIABLE, torch_folder

NAME = "simulated GPU"
CAPABILITY = (9, 0)
PROPERTIES = SimpleNamespace(name=NAME, major=9, minor=0, multi_processor_count=1, total_memory=1 << 30)


@functools.cache
def _kernel_names() -> dict[str, str]:
    """{where it lies in the library: the name of its function template}."""
    symbols = subprocess.run(["nm", "--demangle", os.environ[VARIABLE]], capture_output=True, text=True).stdout
    found = re.findall(r"^0*(\w+) t (?:void )?genimg_fast::cuda::\(anonymous namespace\)::(\w+)", symbols, re.MULTILINE)
    return dict(found)


def install() -> None:
    """Makes this process see a GPU.  To be called before torch is imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    for name in ("libc10.so", "libtorch_cpu.so", "libtorch.so"):
        ctypes.CDLL(str(torch_folder() / "lib" / name), ctypes.RTLD_GLOBAL)
    library = os.environ[VARIABLE]
    ctypes.CDLL(library)

    import torch

    torch.version.cuda = None  # or _extension loads _cuda.so
    from genimg_fast import _extension

    torch.version.cuda = "13.0"
    _extension._CUDA = _extension.LibraryStatus(True, library)
    ops = torch.ops.simulated_gpu

    class Stream:
        """Everything runs at once, so there is nothing to wait for; kernels must name the stream that is current."""

        def __init__(self, device: Any = None, priority: int = 0, *, id: int | None = None) -> None:
            if id is None:
                Stream.created += 1
                id = Stream.created
            self.cuda_stream, self.device = id, torch.device("cuda", 0)

        created = 0

        def wait_stream(self, stream: Stream) -> None: ...
        def wait_event(self, event: Event) -> None: ...
        def synchronize(self) -> None:
            _must_not_capture("synchronize")

        def record_event(self, event: Event | None = None) -> Event:
            event = event or Event()
            event.record(self)
            return event

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

        def __hash__(self) -> int:
            return hash(self.cuda_stream)

    class Event:
        def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
            self._seconds: float | None = None

        def record(self, stream: Stream | None = None) -> None:
            self._seconds = time.perf_counter()

        def wait(self, stream: Stream | None = None) -> None: ...
        def synchronize(self) -> None:
            _must_not_capture("synchronize")

        def query(self) -> bool:
            return True

        def elapsed_time(self, end: Event) -> float:
            """In milliseconds."""
            assert self._seconds is not None
            assert end._seconds is not None
            return 1e3 * (end._seconds - self._seconds)

    def _must_not_capture(name: str) -> None:
        if ops.is_capturing():
            raise RuntimeError(f"{name}: not permitted when the stream is capturing")

    @contextlib.contextmanager
    def stream(stream: Stream | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        before = ops.exchange_stream(stream.cuda_stream)
        try:
            yield
        finally:
            ops.exchange_stream(before)

    class CUDAGraph:
        def capture_begin(self, *args: Any, **kwargs: Any) -> None:
            self._graph = ops.begin_capture()

        def capture_end(self) -> None:
            ops.end_capture()

        def replay(self) -> None:
            ops.replay(self._graph)

        def launches(self) -> list[str]:
            """What it launches: kernels of ours, and operators of PyTorch's, each of which may be several kernels."""
            return [_kernel_names().get(name, name) for name in ops.work_of(self._graph)]

        def __del__(self) -> None:
            if hasattr(self, "_graph"):
                ops.release(self._graph)

    @contextlib.contextmanager
    def graph(cuda_graph: CUDAGraph, pool: Any = None, stream: Stream | None = None, **kwargs: Any) -> Iterator[None]:
        with cuda.stream(stream or Stream()):
            cuda_graph.capture_begin()
            try:
                yield
            finally:
                cuda_graph.capture_end()

    def synchronize(device: Any = None) -> None:
        _must_not_capture("synchronize")

    make_storage = torch.UntypedStorage.__new__

    def new_storage(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is not None and torch.device(device).type == "cuda":
            return torch.empty(*args, dtype=torch.uint8, device=device).untyped_storage()
        return make_storage(cls, *args, **kwargs, **({} if device is None else {"device": device}))

    torch.UntypedStorage.__new__ = new_storage
    # Autograd's thread for the device lets go of Python objects a moment after backward() has returned, and ends the process
    # if Python is gone by then.
    atexit.register(time.sleep, 0.1)
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.is_initialized = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.init = lambda: None
    cuda._lazy_init = lambda: None
    cuda._is_in_bad_fork = lambda: False
    cuda.get_device_capability = lambda device=None: CAPABILITY
    cuda.get_device_name = lambda device=None: NAME
    cuda.get_device_properties = lambda device=None: PROPERTIES
    cuda.is_bf16_supported = lambda including_emulation=True: True
    generator = torch.Generator()
    ops.set_default_generator(generator)
    cuda.default_generators = (generator,)
    cuda.manual_seed = lambda seed: generator.manual_seed(seed)
    cuda.manual_seed_all = lambda seed: generator.manual_seed(seed)
    cuda.get_rng_state = lambda device=None: generator.get_state()
    cuda.set_rng_state = lambda state, device=None: generator.set_state(state)
    cuda._exchange_device = lambda index: 0
    cuda._maybe_exchange_device = lambda index: 0  # another function: torch.compile knows them apart
    cuda.set_device = lambda device: None
    cuda.synchronize = synchronize
    cuda.empty_cache = lambda: None
    cuda.Stream, cuda.Event, cuda.CUDAGraph = Stream, Event, CUDAGraph
    torch.Tensor.record_stream = lambda tensor, stream: None  # type: ignore[method-assign]  # nothing runs later than it is asked for
    cuda.stream, cuda.graph = stream, graph
    cuda.current_stream = lambda device=None: Stream(id=ops.current_stream())
    cuda.default_stream = lambda device=None: Stream(id=0)
    cuda.is_current_stream_capturing = ops.is_capturing
    cuda._sleep = lambda cycles: None
