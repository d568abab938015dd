# SPDX-License-Identifier: MIT
from __future__ import annotations

import json

import pytest

from benchmarks import compare


def report(ratio=2.0, saved=0.5, factor=3.0):
    return {
        "machine": {"cpu": "A CPU"},
        "threads": 2,
        "isa": None,
        "rows": [
            {"name": "generator", "best": "eager", "ratio": {"median": ratio}},
            {"name": "without alternatives", "best": None},
        ],
        "saved_bytes": {"ratio": saved},
        "accuracy": {"winograd": {"factor": factor}, "plain": {"factor": 1.0}},
    }


@pytest.mark.parametrize(
    ("new", "worse"),
    [
        (report(), []),
        (report(ratio=2.0 * 0.91), []),
        (report(ratio=2.0 * 0.89), ["generator: was 2.00, is 1.78, 11% worse"]),
        (report(ratio=4.0), []),
        (report(saved=0.6), ["bytes saved for backward: was 2.00, is 1.67, 17% worse"]),
        (report(factor=4.0), ["error against float64, winograd: was 0.33, is 0.25, 25% worse"]),
        ({**report(), "rows": []}, ["generator: was 2.00, is not measured any more"]),
    ],
)
def test_more_than_a_tenth_worse_is_a_regression(new, worse):
    assert compare.regressions(new, report()) == worse


def test_main_names_the_rows_and_other_machines(tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(report()))
    new.write_text(json.dumps({**report(ratio=1.0), "threads": 8}))
    assert compare.main([str(new), str(old)]) == 1
    assert (
        capsys.readouterr().out
        == "note: another number of threads: 8, was 2\ngenerator: was 2.00, is 1.00, 50% worse\n"
    )
    assert compare.main([str(new), str(new)]) == 0
