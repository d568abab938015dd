# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Callable

import torch


def check_threads(function: Callable[[], torch.Tensor]) -> None:
    """`function` gives the same bits on 1, 2 and 3 threads."""
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(function())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
