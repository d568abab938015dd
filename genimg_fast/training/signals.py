# SPDX-License-Identifier: MIT
"""Stopping between two steps when the user or the scheduler asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collect_stop_signals(*, enabled: bool) -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM, so that the step under way is finished and saved; a second one has its usual effect.

    With several processes (`enabled` is False) each would stop at another step, so there the last checkpoint has to do.
    """
    received: list[signal.Signals] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield received
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(number: int, frame: object) -> None:
        received.append(signal.Signals(number))
        restore()

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    for number in usual:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        restore()
