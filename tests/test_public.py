# SPDX-License-Identifier: MIT
from __future__ import annotations

import subprocess
import sys

import genimg_fast


def test_every_public_name_exists():
    for module in (genimg_fast, genimg_fast.functional, genimg_fast.models, genimg_fast.nn):
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing, f"{module.__name__} names {missing} in __all__"


def test_import_leaves_the_compiler_of_torch_alone():
    """It takes seconds."""
    code = "import sys, genimg_fast.cli; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_needs_torch_and_numpy_alone():
    extras = [
        "accelerate",
        "safetensors",
        "tensorboard",
        "tqdm",
        "PIL",
        "matplotlib",
        "sklearn",
        "yaml",
        "onnxruntime",
        "openvino",
    ]
    # None in sys.modules makes an import of that name raise
    code = f"import sys; sys.modules.update(dict.fromkeys({extras!r})); import genimg_fast; genimg_fast.models.create('vae')"
    subprocess.run([sys.executable, "-c", code], check=True)
