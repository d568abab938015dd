# SPDX-License-Identifier: MIT
"""The shapes, layouts and tolerances of all parity tests and benchmarks, in one place.

Correctness is measured against float64: an error may be at most `ERROR_FACTOR` times the error that PyTorch's own kernel
makes on the same input, and a result within `ULPS` roundings of the largest value is always good enough (PyTorch's error
can be zero by luck).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

ERROR_FACTOR = 2.0
ERROR_FACTOR_WINOGRAD = 6.0
ULPS = {torch.float64: 16, torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}

# Sizes around 1, the vector widths (4, 8, 16), the unrolled block (512) and the chunk of a reduction (4096).
ELEMENTWISE_SHAPES = [
    (),
    (0,),
    (1,),
    (3, 1),
    (7, 5),
    (2, 15),
    (1, 16),
    (17,),
    (3, 0, 2),
    (31, 33),
    (4, 1025),
    (2, 3, 32, 32),
]


def layouts(shape: tuple[int, ...]) -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    """Ways for the same values to lie in memory: (name, function that lays a contiguous tensor out)."""
    yield "contiguous", lambda t: t
    if len(shape) >= 2:
        yield "transposed", lambda t: t.transpose(0, -1).contiguous().transpose(0, -1)
    if shape:
        yield "sliced", _slice_of_larger
    if len(shape) == 4:
        yield "channels_last", lambda t: t.contiguous(memory_format=torch.channels_last)


def _slice_of_larger(t: torch.Tensor) -> torch.Tensor:
    """The same values as a view into a larger buffer that is NaN elsewhere: reading outside shows."""
    larger = t.new_full([size + 3 for size in t.shape], float("nan"))
    view = larger[tuple(slice(1, 1 + size) for size in t.shape)]
    view.copy_(t)
    return view


def randn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def max_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    return (actual.double() - exact).abs().max().item() if exact.numel() else 0.0


def assert_accurate(
    actual: torch.Tensor, exact: torch.Tensor, torch_result: torch.Tensor, factor: float = ERROR_FACTOR, what: str = ""
) -> None:
    """`actual` is as near to the float64 result `exact` as the module docstring asks; `torch_result` is PyTorch's own."""
    assert actual.shape == exact.shape
    assert actual.dtype == torch_result.dtype
    finite = exact.isfinite()
    torch.testing.assert_close(actual.double()[~finite], exact[~finite], equal_nan=True)
    actual, exact, torch_result = actual[finite], exact[finite], torch_result[finite]
    largest = exact.abs().max().item() if exact.numel() else 0.0
    bound = max(
        factor * max_error(torch_result, exact),
        ULPS[actual.dtype] * torch.finfo(actual.dtype).eps * max(largest, 1e-30),
    )
    error = max_error(actual, exact)
    assert error <= bound, (
        f"{what}: error {error:.3e} exceeds {bound:.3e} (PyTorch's own: {max_error(torch_result, exact):.3e})"
    )
