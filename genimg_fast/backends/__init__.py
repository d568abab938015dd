# SPDX-License-Identifier: MIT
"""Settings of the native kernels, in the manner of `torch.backends`."""

from genimg_fast.backends import cpu, cuda

__all__ = ["cpu", "cuda"]
