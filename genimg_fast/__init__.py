# SPDX-License-Identifier: MIT
"""genimg_fast: PyTorch image generators that train and sample faster, with the same numbers and the same checkpoints."""

from genimg_fast import backends, functional, models, nn
from genimg_fast._backend import use_backend
from genimg_fast._extension import build_info, show_config
from genimg_fast.explain import explain
from genimg_fast.nn import fuse, unfuse
from genimg_fast.sampler import Sampler

__version__ = "0.1.0"

__all__ = [
    "Sampler",
    "backends",
    "build_info",
    "explain",
    "functional",
    "fuse",
    "models",
    "nn",
    "show_config",
    "unfuse",
    "use_backend",
]
