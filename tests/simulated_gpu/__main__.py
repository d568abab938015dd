# SPDX-License-Identifier: MIT
"""Runs Python with the simulated GPU: `python -m tests.simulated_gpu -m pytest tests/contract -k cuda`."""

import os
import sys

from tests import simulated_gpu

os.execve(sys.executable, [sys.executable, *sys.argv[1:]], simulated_gpu.environment())
