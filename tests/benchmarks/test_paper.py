"""benchmarks/paper.py: differences are paired by split, and an interrupted run continues."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.results.values.intervals import t_interval
from tests.support.data.images import make_class_folders

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def row(seed: int, what: str, init: str, test: float | None) -> dict[str, Any]:
    return {"setting": "paper", "seed": seed, "what": what, "init": init, "test": test} | {
        "images": 100,
        "cpu_s": 30.0,
        "plan": "a plan",
    }


def differences(text: str) -> dict[str, list[str]]:
    """Return the cells of the first table by its first column."""
    rows = (line.strip("| ").split(" | ") for line in text.splitlines() if " less " in line)
    return {cells[0]: [cell.strip() for cell in cells[1:]] for cells in rows}


def test_differences_are_those_of_the_splits_that_have_both_sides(module: Any) -> None:
    gains = (0.1, 0.04, 0.01)
    rows = [row(seed, "baseline", "", 0.5) for seed in range(4)]
    rows += [row(seed, "greedy", "random", 0.5 + gain) for seed, gain in enumerate(gains)]
    rows += [row(seed, "pair 0", "random", 0.3) for seed in range(2)]
    rows += [row(seed, "pair 0", "pretrained", 0.4) for seed in range(2)]
    # A side that diverged takes its pair out, not the whole split.
    rows += [row(0, "pair 1", "random", None), row(0, "pair 1", "pretrained", 0.9)]
    found = differences(module("paper_report").render(rows, "What was run.", "python it"))
    interval = t_interval([10.0, 4.0, 1.0], 0.95)
    assert found["greedy, random start, less frozen baseline"] == [
        *("3", "+5.0", f"{interval.low:+.1f} to {interval.high:+.1f}", "+10.0, +4.0, +1.0")
    ]
    splits, points, ends, each = found["drawn plans: inherited less random"]
    assert (splits, points, each) == ("2", "+10.0", "+10.0, +10.0")
    low, high = (float(end) for end in ends.split(" to "))
    assert low < 10 < high, "equal differences are no certainty"
    assert found["inherited: joint less greedy"][0] == "0"


@pytest.mark.slow
def test_a_reduced_run_continues(tmp_path: Path) -> None:
    images = make_class_folders(tmp_path / "photos", {"a": 12, "b": 12, "c": 12})
    options = (
        f"--images={images} --weights=none --backbone=test_resnet --image-size=32 --classes=2 "
        "--layers=1 --stage-trials=1 --epochs=1 --splits=1 --pairs=1 --trainings=paper "
        f"--folder={tmp_path / 'work'} --output={tmp_path / 'report.md'}"
    )
    command = [sys.executable, str(BENCHMARKS / "paper.py"), *options.split()]
    lines = tmp_path / "work/reduced.jsonl"
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    whole = lines.read_text().splitlines()
    text = (tmp_path / "report.md").read_text()
    assert len(whole) == len(set(whole)) == 7
    assert all(cells[0] == "1" for cells in differences(text).values())
    trials = re.findall(r"^\| 0 \| (\w+), (\w+) \| (\d+) \|", text, re.MULTILINE)
    assert len(trials) == 3
    assert trials[1][2] == trials[2][2], "the joint search has as many trials as the greedy one"
    lines.write_text("\n".join(whole[:-1]) + "\n")
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    again = lines.read_text().splitlines()
    assert again[:-1] == whole[:-1]
    assert re.sub(r'"cpu_s".*', "", again[-1]) == re.sub(r'"cpu_s".*', "", whole[-1])
