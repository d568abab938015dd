# SPDX-License-Identifier: MIT
"""Settings of the CUDA kernels.  Process-wide, like the flags of `torch.backends`.

`allow_wgmma`: whether convolutions of half types may run on Hopper's own tensor-core instructions (wgmma and the tensor memory
accelerator, sm_90a) where GPU and shape allow, and not on mma.sync, which every GPU since sm_80 has.  False by default, since
these kernels have not run on a GPU yet: a fault in them may hang it, and no check on first use protects from that.  The
environment variable GENIMG_FAST_WGMMA=1 sets the default.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

# (whether wgmma multiplies, the tile's number in WgmmaTileChoice or else in GemmTileChoice of csrc/cuda)
TILES = {
    "mma_128x128": (False, 0),
    "mma_256x64": (False, 1),
    "mma_128x64": (False, 2),
    "mma_64x64": (False, 3),
    "wgmma_128x128": (True, 0),
    "wgmma_256x64": (True, 1),
    "wgmma_128x64": (True, 2),
}

allow_wgmma: bool = os.environ.get("GENIMG_FAST_WGMMA", "0") == "1"
_tile = -1  # chosen for each convolution


@contextmanager
def force_tile(name: str) -> Iterator[None]:
    """Computes convolutions on tensor cores by one kernel and tile, for tests and benchmarks.

    A convolution that these cannot compute is computed as if nothing was forced.

    Raises:
        ValueError: if `name` is not one of `TILES`.
    """
    global allow_wgmma, _tile
    if name not in TILES:
        raise ValueError(f"tile is {name!r}; allowed are {', '.join(map(repr, TILES))}")
    before = allow_wgmma, _tile
    allow_wgmma, _tile = TILES[name]
    try:
        yield
    finally:
        allow_wgmma, _tile = before


class _Settings(types.ModuleType):
    """Checks what is assigned to the module's attribute."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "allow_wgmma" and not isinstance(value, bool):
            raise TypeError(f"allow_wgmma must be True or False, got {value!r}")
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Settings
