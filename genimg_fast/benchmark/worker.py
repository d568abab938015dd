# SPDX-License-Identifier: MIT
"""A runtime in a process of its own.

Several thread pools in one process spin against each other and distort times by 1.5 to 3.  Here each runtime has its own
process, which sleeps on a pipe while another one runs.

The parent sends `(request, argument)`, the worker answers `("done", result)` or `("failed", reason)`:

    "prepare", workload   builds it, compares its outputs with float64, warms up           -> Checked
    "run", seconds        runs it for about so long                                        -> Block
    "call", function      runs function(runtime): a measurement that takes no turns        -> what it returns
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from genimg_fast.benchmark.runtimes import RUNTIMES, Runtime, isa_environment
from genimg_fast.benchmark.workloads import TOLERANCE_OF_TF32, Prepared, Workload

ANSWER_SECONDS = 600
"""A worker that has not answered by then is given up: compiling for the first time takes minutes."""
SETTLE_SECONDS = 0.03
"""Between a block and its answer.  Threads spin for milliseconds after a loop, which is what makes the next loop start fast: every
runtime keeps its own default, and the next worker waits until they sleep."""


class RuntimeFailedError(RuntimeError):
    """A runtime cannot run a workload, or computes something else; the message is one line."""


class Checked(NamedTuple):
    error: float
    """The largest error of the outputs against float64, relative to the tolerance of each: at most 1."""
    output: str
    """The output that has it."""


class Block(NamedTuple):
    seconds: float
    """For one call."""
    idle_cpu_seconds: float
    """What this worker's threads used since the block before, while it should have slept."""


# --- the worker's side -----------------------------------------------------------------------------------------------


class Session:
    """Answers the requests for one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._call: Callable[[], object] = lambda: None
        self._cpu_seconds = time.process_time()

    def prepare(self, workload: Workload) -> Checked:
        self._call = lambda: None  # frees the workload before
        prepared, checked = build(workload, self.runtime)
        self._call = prepared.call
        self._block(1)
        return checked

    def run(self, seconds: float) -> Block:
        idle = time.process_time() - self._cpu_seconds
        self._block(1)  # after a sleep threads must wake, and others have filled the caches: not counted
        once = self._block(1)
        per_call = self._block(int(seconds / max(once, 1e-9))) if once <= seconds / 2 else once
        time.sleep(SETTLE_SECONDS)
        self._cpu_seconds = time.process_time()
        return Block(per_call, idle)

    def call(self, function: Callable[[Runtime], Any]) -> Any:
        return function(self.runtime)

    def _block(self, calls: int) -> float:
        return seconds_per_call(self._call, calls, self.runtime.device)


def seconds_per_call(function: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type == "cuda":  # by the GPU's own clock, from the first kernel to the end of the last
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls
    before = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - before) / calls


def build(workload: Workload, runtime: Runtime) -> tuple[Prepared, Checked]:
    """Prepares the workload and compares its first call with the same in eager float64.

    Raises:
        RuntimeFailedError: an output differs by more than its tolerance, or the noise is not standard normal.
    """
    prepared = workload.prepare(runtime)
    actual = [torch.as_tensor(t).detach().to("cpu", torch.float64, copy=True) for t in prepared.call()]
    noise = prepared.noise(actual) if prepared.noise else None
    if noise is not None:
        check_standard_normal(noise)
        noise = noise.to(runtime.device)
    eager, tries_all = Runtime(str(runtime.device)), torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # for one run it would try each of its algorithms in float64
    try:
        exact = workload.prepare(eager, torch.float64, noise).call()
    finally:
        torch.backends.cudnn.benchmark = tries_all
    worst = Checked(0.0, "")
    for (label, tolerance), a, e in zip(prepared.tolerances.items(), actual, exact, strict=True):
        error = relative_error(a, torch.as_tensor(e).detach().cpu())
        if runtime.device.type == "cuda":
            tolerance = max(tolerance, TOLERANCE_OF_TF32)
        if not error <= tolerance:
            raise RuntimeFailedError(
                f"wrong output: {label} differs from float64 by {error:.1e}; allowed is {tolerance:.0e}"
            )
        worst = max(worst, Checked(error / tolerance, label))
    return prepared, worst


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """||actual - exact|| / ||exact||; infinite for another shape, NaN where one is NaN."""
    if actual.shape != exact.shape:
        return math.inf
    return ((actual - exact).norm() / exact.norm().clamp(min=1e-300)).item()


def check_standard_normal(noise: torch.Tensor) -> None:
    """Mean and variance within five standard errors.

    Raises:
        RuntimeFailedError: they are not.
    """
    n = noise.numel()
    mean, variance = noise.mean().item(), noise.var().item()
    if not (abs(mean) < 5 / n**0.5 and abs(variance - 1) < 5 * (2 / n) ** 0.5):
        raise RuntimeFailedError(f"wrong noise: mean {mean:.3f} and variance {variance:.3f} over {n} values")


def serve(connection: Connection, runtime_name: str, device: str, threads: int, isa: str | None) -> None:
    """The worker's main function; ends when the parent closes the pipe, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # exporters and compilers chat there
    torch.set_num_threads(threads)
    session: Session | None = None
    while True:
        try:
            request, argument = connection.recv()
        except EOFError:
            return
        try:
            session = session or Session(RUNTIMES[runtime_name](device, threads, isa))
            answer = ("done", getattr(session, request)(argument))
        except Exception as error:
            answer = ("failed", one_line(error))
        connection.send(answer)


def one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    text = words if isinstance(error, RuntimeFailedError) else f"{type(error).__name__}: {words}"
    return text if len(text) <= 200 else f"{text[:197]}..."


# --- the parent's side -----------------------------------------------------------------------------------------------


class Worker:
    """Starts a process for a runtime and talks to it.  A context manager: the process ends with the block.

    Args:
        runtime: a key of `runtimes.RUNTIMES`.
        threads: that the runtime may use.
        isa: "avx2" to hold it to that; None for what the CPU has.
        deadline: on `time.monotonic`'s clock; it is waited for no longer.
    """

    def __init__(
        self, runtime: str, *, threads: int, isa: str | None = None, device: str = "cpu", deadline: float = math.inf
    ) -> None:
        self._busy, self._deadline = False, deadline
        context = multiprocessing.get_context("spawn")  # a fork would inherit the parent's thread pools
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, runtime, device, threads, isa))
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        with _environment({**counts, **isa_environment(isa)}):  # read by the libraries as they load
            self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: str, argument: object) -> Any:
        """Sends a request and waits for its result.

        Raises:
            RuntimeFailedError: the runtime cannot do it, or the process died.
        """
        self.send(request, argument)
        return self.receive()

    def send(self, request: str, argument: object) -> None:
        self._busy = True
        with suppress(BrokenPipeError):  # it died; receive() says so
            self._connection.send((request, argument))

    def receive(self, since: float | None = None) -> Any:
        """The result of the request sent last; raises as `ask` does.

        Args:
            since: when `ANSWER_SECONDS` began, on `time.monotonic`'s clock; None: now.
        """
        now = time.monotonic()
        seconds = min((now if since is None else since) + ANSWER_SECONDS, self._deadline) - now
        try:
            if not self._connection.poll(max(seconds, 0)):
                self._process.kill()
                is_over = time.monotonic() >= self._deadline
                raise RuntimeFailedError(
                    f"no answer {'before time was up' if is_over else f'within {ANSWER_SECONDS} s'}"
                )
            status, result = self._connection.recv()
            self._busy = False
        except (EOFError, ConnectionError):
            self._process.join()
            raise RuntimeFailedError(f"its process died ({_exit_in_words(self._process.exitcode)})") from None
        if status == "failed":
            raise RuntimeFailedError(result)
        return result

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def close(self) -> None:
        self._connection.close()
        if self._busy:  # as after Ctrl-C: it would go on compiling
            self._process.kill()
        self._process.join(timeout=60)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(timeout=10)  # one whose kernel never ends may not die either


def _exit_in_words(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
