# SPDX-License-Identifier: MIT
"""Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011) and the normal numbers made of it, in PyTorch.

Element i of a tensor is word i % 4 of the block with counter i // 4 and the 64-bit seed as key, so it is the same on every
device and for every number of threads.  The native kernels (csrc/common/philox.h) draw the same integers; their floats
differ by a few ulp.
"""

from __future__ import annotations

import math

import torch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_QUARTER_TURN = 1 << 22  # an angle is the 24 high bits of a word


def philox4x32(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random words from four counter words and two key words: int64 tensors of values in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply_wide(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply_wide(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def _multiply_wide(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The high and low words of a * b, by halves of b, since int64 holds no unsigned 64-bit product."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _WORD


def normal(seed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """float32 numbers ~ N(0, 1) of `shape`, drawn with `seed`, one int64."""
    numel = math.prod(shape)
    block = torch.arange((numel + 3) // 4, device=seed.device)
    zero = torch.zeros_like(block)
    words = philox4x32((block & _WORD, block >> 32, zero, zero), (seed & _WORD, (seed >> 32) & _WORD))
    numbers = torch.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=-1)
    # an index, not a slice: a slice would have torch.export prove that there are enough numbers for any size
    return numbers.flatten()[torch.arange(numel, device=seed.device)].view(shape)


def _box_muller(word0: torch.Tensor, word1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two independent normal numbers from two words (Box and Muller 1958)."""
    uniform = ((word0 >> 8) + 1).float() * 2.0**-24  # (0, 1]: never 0
    radius = (-2 * uniform.log()).sqrt()
    # The nearest quarter turn and the angle from there: float32 has too few bits for the whole angle.
    turn = word1 >> 8
    quadrant = (turn + _QUARTER_TURN // 2) // _QUARTER_TURN
    angle = (turn - quadrant * _QUARTER_TURN).float() * (math.pi / 2 / _QUARTER_TURN)
    odd = quadrant % 2 == 1
    cosine = torch.where(odd, angle.sin(), angle.cos())
    sine = torch.where(odd, angle.cos(), angle.sin())
    cosine = torch.where((quadrant + 1) & 2 != 0, -cosine, cosine)
    sine = torch.where(quadrant & 2 != 0, -sine, sine)
    return radius * cosine, radius * sine
