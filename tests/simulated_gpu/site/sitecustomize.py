# SPDX-License-Identifier: MIT
"""Python imports this when it starts, in every process whose PYTHONPATH names this folder (see `environment`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.simulated_gpu import torch_cuda

torch_cuda.install()
