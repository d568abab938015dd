# SPDX-License-Identifier: MIT
"""The arrays that a test gives to a kernel: guarded at both ends, NaN before they are written, misaligned on request."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np

DTYPES = ("float32", "float16", "bfloat16")
GRADIENT_DTYPE = {"float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}
"""In which a loss keeps the gradient of its input."""
LOSS_DTYPES = [(dtype, dtype, dtype) for dtype in DTYPES]
LOSS_DTYPES += [
    ("float16", "float32", "float32"),
    ("bfloat16", "float32", "float32"),
    ("bfloat16", "bfloat16", "float32"),
]
"""Of a loss: its input, its target and what it returns."""
CHANNEL_DTYPES = [("float32",), ("float16",), ("bfloat16",), ("float16", "bfloat16", "float32")]
"""For `channel_vectors`: in the last, vectors that stand side by side differ."""
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}  # NumPy has no bfloat16
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
ROUNDINGS = {"float32": 4, "float16": 2, "bfloat16": 2}  # ULPS of tests/_cases.py, which needs torch

_GUARD_BYTES = 1024
_GUARD = np.full(_GUARD_BYTES // 2, 0x7FFD, np.uint16).view(np.uint8)  # NaN as float16, bfloat16, float32 and float64


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds to `dtype` and stores as NumPy can."""
    if dtype != "bfloat16":
        return np.asarray(values).astype(STORAGE[dtype])
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def decode(array: np.ndarray, dtype: str) -> np.ndarray:
    """The values of a stored array, in float64."""
    if dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def channel_vectors(memory: Memory, values: Sequence[np.ndarray], dtypes: Sequence[str]) -> tuple[list, list]:
    """Per-channel vectors as a kernel takes them, each in its own of `dtypes`, in turn; and what it reads, in float64."""
    kinds = [dtypes[i % len(dtypes)] for i in range(len(values))]
    arrays = [memory.input(value, dtype) for value, dtype in zip(values, kinds, strict=True)]
    return arrays, [decode(array, dtype) for array, dtype in zip(arrays, kinds, strict=True)]


def assert_accurate(
    actual: np.ndarray, exact: np.ndarray, dtype: str, what: str = "", roundings: int | None = None
) -> None:
    """`actual`, stored as `dtype`, is within a few roundings of the largest value of `exact`, in float64."""
    roundings = roundings or ROUNDINGS[dtype]
    actual = decode(actual, dtype)
    assert actual.shape == exact.shape
    largest = np.abs(exact, where=np.isfinite(exact), out=np.zeros_like(exact)).max(initial=1e-30)
    np.testing.assert_allclose(actual, exact, rtol=0, atol=roundings * EPSILON[dtype] * largest, err_msg=what)


class Memory:
    """Hands out arrays and sees whether a kernel wrote beside them.  AddressSanitizer, if there, also sees reads."""

    def __init__(self, kernels: ModuleType) -> None:
        self._kernels = kernels
        self._guards: list[np.ndarray] = []

    def output(self, shape: int | tuple[int, ...], dtype: str | type, misaligned: int = 0) -> np.ndarray:
        """NaN (all bits one) everywhere.  Starts `misaligned` elements past a 16-byte boundary."""
        storage = np.dtype(STORAGE.get(dtype, dtype) if isinstance(dtype, str) else dtype)
        size = int(np.prod(shape)) * storage.itemsize
        memory = np.full(2 * _GUARD_BYTES + size + 64, 0xFF, np.uint8)
        first = _GUARD_BYTES + -(memory.ctypes.data + _GUARD_BYTES) % 16 + misaligned * storage.itemsize
        for guard in (memory[first - _GUARD_BYTES : first], memory[first + size : first + size + _GUARD_BYTES]):
            guard[:] = _GUARD
            self._kernels.set_accessible(guard, False)
            self._guards.append(guard)
        return memory[first : first + size].view(storage).reshape(shape)

    def input(self, values: np.ndarray, dtype: str | type, misaligned: int = 0) -> np.ndarray:
        """`values` rounded to `dtype`, read-only."""
        encoded = encode(values, dtype) if dtype in DTYPES else np.asarray(values, dtype)
        array = self.output(encoded.shape, encoded.dtype.type, misaligned)
        array[...] = encoded
        array.flags.writeable = False
        return array

    def check_guards(self) -> None:
        guards, self._guards = self._guards, []
        for guard in guards:
            self._kernels.set_accessible(guard, True)
        for guard in guards:
            assert np.array_equal(guard, _GUARD), "a kernel wrote beside an array"
