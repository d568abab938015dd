# SPDX-License-Identifier: MIT
from __future__ import annotations

import json

import pytest

from benchmarks import readme_table

TIMES = {"low": 0.9, "median": 1.0, "high": 1.25}
RUNTIME = {"milliseconds": TIMES, "held_to_isa": True}
REPORT = {
    "suite": "cpu",
    "machine": {
        "cpu": "A CPU", "cores": 2, "threads": 2, "isa": "avx2", "gpu": None, "versions": {"torch": "2.13.0"}, "commit": "abc",
        "date": "2030-01-01",
    },
    "rows": [
        {
            "name": "generator", "best": "openvino", "ratio": {"low": 3.5, "median": 4.0, "high": 4.25}, "gate": 2.5, "goal": 5.0,
            "gate_met": True, "goal_met": False,
            "runtimes": {
                "ours": RUNTIME,
                "eager": {**RUNTIME, "milliseconds": {"low": 8.0, "median": 9.0, "high": 9.5}},
                "openvino": {**RUNTIME, "milliseconds": {"low": 3.0, "median": 4.0, "high": 4.5}},
            },
        },
        {"name": "broken", "best": None, "runtimes": {}},
    ],
    "saved_bytes": {"ours": 50e6, "eager": 100e6, "ratio": 0.5, "gate": 0.75, "goal": 0.55, "gate_met": True, "goal_met": True},
    "accuracy": {n: {"factor": 2.5, "gate": 6, "goal": 3, "gate_met": True, "goal_met": True} for n in ("winograd", "plain")},
}  # fmt: skip
START, END = readme_table.markers(readme_table.CPU)
README = f"before\n{START}\nold\n{END}\nafter\n"
OTHER_PARTS = "\n".join(
    "\n".join(readme_table.markers(name)) for name in (readme_table.ARCHITECTURES, readme_table.GPU)
)


def test_only_what_is_between_the_markers_changes():
    sections = ["one", "two"]
    text = readme_table.rewrite(README, readme_table.CPU, sections)
    assert text == f"before\n{START}\n\none\n\ntwo\n\n{END}\nafter\n"
    assert readme_table.rewrite(text, readme_table.CPU, sections) == text


def test_the_table_says_who_won_and_what_was_to_be_reached():
    lines = readme_table.table(REPORT).splitlines()
    assert lines[0] == "A CPU, 2 cores, 2 threads, avx2, torch 2.13.0; 2030-01-01, commit abc:"
    assert "| generator | 9 ms | 4 ms, OpenVINO | 1 ms | **4.00** (3.50 to 4.25) | 2.5 met, 5 not met |" in lines
    assert "| broken |  |  | failed |  |  |" in lines
    assert len({line.count("|") for line in lines[2:]}) == 1  # every row has every column


@pytest.mark.parametrize("readme", ["no markers", f"{END} {START}", README + README])
def test_markers_must_be_there_once(readme):
    with pytest.raises(ValueError, match="once each"):
        readme_table.rewrite(readme, readme_table.CPU, ["section"])


def test_main_reads_the_results_folder_and_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(README + OTHER_PARTS)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    assert readme_table.main() == 1
    (tmp_path / "benchmarks" / "results" / "other.json").write_text("{}")  # of another kind
    (tmp_path / "benchmarks" / "results" / "machine.json").write_text(json.dumps(REPORT))
    of_architectures = {**REPORT, "suite": "architectures", "rows": [{**REPORT["rows"][0], "name": "a U-Net"}]}
    (tmp_path / "benchmarks" / "results" / "architectures.json").write_text(json.dumps(of_architectures))
    assert readme_table.main() == 0
    text = (tmp_path / "README.md").read_text()
    assert "A CPU" in text
    assert text.index("| generator |") < text.index("| a U-Net |") < text.index("not yet run on silicon")
    assert "not yet run on silicon" in text
    assert f"![{readme_table.ALT_TEXTS['rows.png']}](docs/benchmarks/machine/rows.png)" in text
    assert (tmp_path / "docs" / "benchmarks" / "machine" / "rows.png").stat().st_size > 1000
