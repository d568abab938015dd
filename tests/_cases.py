# SPDX-License-Identifier: MIT
"""The shapes, layouts and tolerances of all parity tests, in one place.

Correctness is measured against float64.  The root mean square of the error may be at most `ERROR_FACTOR` times that of
PyTorch's own kernel on the same input, a little more for a few values, and the largest error twice as much again (both are
luck then).
A result within `ULPS` roundings of the values is always good enough: PyTorch's error can be zero by luck too.  float64
itself is compared with PyTorch's float64, whose batch statistics are sums one by one: they err by hundreds of roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

ERROR_FACTOR = 2.0
ERROR_FACTOR_WINOGRAD = 6.0
ULPS = {torch.float64: 1024, torch.float32: 8, torch.float16: 2, torch.bfloat16: 2}
EPS_OF_TF32 = 2.0**-10  # float32 where the tensor cores round it, counted like a half type

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


def round_to_tf32(t: torch.Tensor) -> torch.Tensor:
    """What a tensor core makes of these values: ten bits of mantissa, ties away from zero."""
    bits = t.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(t.dtype)


def assert_accurate(
    actual: torch.Tensor,
    exact: torch.Tensor,
    torch_result: torch.Tensor,
    factor: float = ERROR_FACTOR,
    what: str = "",
    size_of_terms: float = 0.0,
    tf32: bool = False,
) -> None:
    """`actual` is as near to the float64 result `exact` as the module docstring asks; `torch_result` is PyTorch's own.

    Args:
        tf32: the values are products of the tensor cores, which PyTorch need not use for the same ones.
        size_of_terms: of a result that is a sum whose terms cancel: what they come to without their signs, as the root
            of the sum of their squares.  It is what the roundings are counted in, if the result itself is smaller.
    """
    assert actual.shape == exact.shape, what
    assert actual.dtype == torch_result.dtype, what
    ulps = 2 * EPS_OF_TF32 if tf32 else ULPS[actual.dtype] * torch.finfo(actual.dtype).eps
    finite = exact.isfinite()
    torch.testing.assert_close(actual.double()[~finite], exact[~finite], equal_nan=True)
    if not finite.any():
        return
    exact = exact[finite]
    error, torch_error = actual.double()[finite] - exact, torch_result.double()[finite] - exact

    def rms(t: torch.Tensor) -> float:
        return t.square().mean().sqrt().item()

    def largest(t: torch.Tensor) -> float:
        return t.abs().max().item()

    # the ratio of two rms of n errors each is known to within 1 / sqrt(n); PyTorch's errors differ from CPU to CPU
    for name, size, slack in (("rms", rms, 1 + 2 / exact.numel() ** 0.5), ("largest", largest, 2)):
        bound = slack * max(factor * size(torch_error), ulps * max(size(exact), size_of_terms, 1e-30))
        assert size(error) <= bound, (
            f"{what}: {name} error {size(error):.3e} exceeds {bound:.3e} (PyTorch's own: {size(torch_error):.3e})"
        )
