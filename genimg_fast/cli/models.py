# SPDX-License-Identifier: MIT
"""`genimg-fast models`"""

from __future__ import annotations

import argparse

from genimg_fast.cli import _common


def add_parser(subparsers) -> argparse.ArgumentParser:
    return _common.add_parser(
        subparsers,
        "models",
        "List the models that can be trained, with their default sizes in Python (in `train`: 1x32x32).",
        "genimg-fast models",
    )


def run(args: argparse.Namespace) -> None:
    import inspect

    import torch

    from genimg_fast import models
    from genimg_fast._table import format_table

    rows = []
    for name in models.list_models():
        with torch.device("meta"):  # counts parameters without allocating them
            model = models.create(name)
        count = sum(p.numel() for p in model.parameters())
        shape = "x".join(map(str, model.image_shape))
        summary = (inspect.getdoc(type(model)) or "").partition("\n")[0].rstrip(".")
        rows.append((name, shape, f"{count / 1e6:.2f} M", summary))
    print(format_table(("model", "image", "parameters", "what it is"), rows))
