# SPDX-License-Identifier: MIT
"""Data sets of images for training and evaluation, and grids of images for people to look at.

Needs the "train" extra (Pillow, scikit-learn).
"""

from genimg_fast.data.detect import open_dataset
from genimg_fast.data.errors import DataError
from genimg_fast.data.grid import save_grid, to_grid

__all__ = ["DataError", "open_dataset", "save_grid", "to_grid"]
