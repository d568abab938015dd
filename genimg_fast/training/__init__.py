# SPDX-License-Identifier: MIT
"""Training: `train(TrainConfig(model="conv_vae", data="digits", out="runs/digits"))`, then `load_model("runs/digits")`."""

try:
    import accelerate  # noqa: F401
except ImportError as error:
    raise ImportError("genimg_fast.training needs further packages: pip install 'genimg-fast[train]'") from error

from genimg_fast.training.checkpoint import load_model
from genimg_fast.training.config import TrainConfig
from genimg_fast.training.errors import Interrupted, UserError
from genimg_fast.training.loop import TrainResult, train

__all__ = ["Interrupted", "TrainConfig", "TrainResult", "UserError", "load_model", "train"]
