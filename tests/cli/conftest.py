# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from genimg_fast import cli

TRAIN = [
    "--data",
    "digits",
    "--image-size",
    "32",
    "--model-arg",
    "width=4",
    "--model-arg",
    "latent=8",
    "--batch-size",
    "8",
]
SHORT = ["--max-steps", "2", "--log-every", "1", "--quiet"]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """A function that trains a tiny model for two steps, once for each model, and returns the folder of the run."""
    runs = {}

    def train(model):
        if model not in runs:
            out = tmp_path_factory.mktemp("runs") / model
            assert cli.main(["train", model, *TRAIN, *SHORT, "--out", str(out)]) == 0
            runs[model] = out
        return runs[model]

    return train
