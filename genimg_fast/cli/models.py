# SPDX-License-Identifier: MIT
"""`genimg-fast models`"""

from __future__ import annotations

import argparse

from genimg_fast.cli import _common


def add_parser(subparsers) -> argparse.ArgumentParser:
    return _common.add_parser(
        subparsers,
        "models",
        "List the models that can be trained, with their default sizes.",
        "genimg-fast models",
    )


def run(args: argparse.Namespace) -> None:
    import torch

    from genimg_fast import models

    rows = []
    for name in models.list_models():
        with torch.device("meta"):  # counts parameters without allocating them
            model = models.create(name)
        count = sum(p.numel() for p in model.parameters())
        shape = "x".join(map(str, model.image_shape))
        rows.append((name, shape, f"{count / 1e6:.2f} M", (type(model).__doc__ or "").strip().split("\n")[0]))
    print(_common.table(("model", "image", "parameters", "what it is"), rows))
