# SPDX-License-Identifier: MIT
from __future__ import annotations

import json

import pytest

from benchmarks import readme_table

REPORT = {
    "machine": {
        "cpu": "A CPU", "cores": 2, "threads": 2, "isa": "avx2", "gpu": None, "torch": "2.13.0", "commit": "abc", "date": "2030-01-01",
    },
    "results": [
        {
            "name": "elbo_loss", "passes": "forward", "unit": "GB/s",
            "native": {"milliseconds": 1.0, "rate": 20.0}, "eager": {"milliseconds": 4.0, "rate": 5.0},
            "speedup": {"low": 3.5, "median": 4.0, "high": 4.25},
        }
    ],
}  # fmt: skip
README = f"before\n{readme_table.START}\nold\n{readme_table.END}\nafter\n"


def test_only_what_is_between_the_markers_changes():
    text = readme_table.rewrite(README, [REPORT])
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| elbo_loss, forward | 4 ms, 5 GB/s | 1 ms, 20 GB/s | **4.00** (3.50 to 4.25) |" in text
    assert "A CPU, 2 cores, 2 threads, avx2, torch 2.13.0; 2030-01-01, commit abc:" in text
    assert readme_table.rewrite(text, [REPORT]) == text


@pytest.mark.parametrize("readme", ["no markers", f"{readme_table.END} {readme_table.START}", README + README])
def test_markers_must_be_there_once(readme):
    with pytest.raises(ValueError, match="once each"):
        readme_table.rewrite(readme, [REPORT])


def test_main_reads_the_results_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    assert readme_table.main() == 1
    (tmp_path / "benchmarks" / "results" / "gpu-check.json").write_text("{}")  # of another kind
    (tmp_path / "benchmarks" / "results" / "machine.json").write_text(json.dumps(REPORT))
    assert readme_table.main() == 0
    assert "A CPU" in (tmp_path / "README.md").read_text()
