# SPDX-License-Identifier: MIT
"""Random lives of fused models.  `Life(seed)` and its `happened` tell what came before a failure."""

from __future__ import annotations

import pytest

from tests.nn._lives import Life

SEEDS, SEEDS_IN_CI, EVENTS = 1000, 60, 30


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=[pytest.mark.slow] if s >= SEEDS_IN_CI else []) for s in range(SEEDS)]
)
def test_a_fused_model_lives_as_the_plain_one(seed):
    life = Life(seed)
    try:
        life.live(EVENTS)
    finally:
        print(life.plain, *life.happened, sep="\n")
