"""benchmarks/naive.py: both sides train the same thing, and the report says what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch

from autotune.models.layers import list_layers
from tests.support.data.images import make_split_folder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "name", ["mobilenetv2_100", "test_resnet", "vit_tiny_patch16_224", "convnext_atto"]
)
def test_a_layer_is_the_same_on_both_sides(name: str, module: Any) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    parameters = dict(model.named_parameters())
    ours = [set(layer.names) & parameters.keys() for layer in list_layers(model)]
    assert [set(names) for names in module("naive_study").layers_of(model)] == ours


def test_the_list_is_the_same_every_time_and_has_all_depths(module: Any) -> None:
    naive: ModuleType = module("naive")
    plans = naive.draw_plans(24, 6)
    assert plans[:5] == naive.draw_plans(5, 6)
    assert len(set(plans)) == 24
    assert plans[0] == naive.BASELINE
    counts = Counter(plan.depth for plan in plans)
    assert counts == {0: 4, 1: 4, 2: 4, 3: 3, 4: 3, 5: 3, 6: 3}


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0] * 24, "reached"),
        ([0.2, -0.2] * 12, "reached"),
        ([3.0, -3.0] * 12, "not decided"),
        ([-1.0, -1.2, -0.8] * 8, "missed"),
        ([1.0, 1.2, 0.8] * 8, "outside"),
    ],
)
def test_what_a_difference_says(values: list[float], verdict: str, module: Any) -> None:
    found = module("naive_report").Difference.of(values)
    assert found.verdict.startswith(verdict)
    assert found.low <= found.mean <= found.high


def test_a_part_of_the_list_is_scaled_by_depth(module: Any) -> None:
    report = module("naive_report")
    plans = module("naive").draw_plans(6, 1)  # depths 0, 1, 0, 1, 0, 1
    results = [report.Result(0, 10.0, 0.5, 1), report.Result(1, 30.0, 0.5, 1)]
    run = report.Run("naive", 0, "", "", {}, {}, 0, (2, 2), 22.0, 44.0, results)
    assert report._scaled(run, plans) == pytest.approx(22.0 * 3)


@pytest.mark.parametrize(("cpu_s", "word"), [(200.0, "reached"), (90.0, "NO VERDICT")])
def test_a_busy_machine_is_no_verdict(cpu_s: float, word: str, module: Any) -> None:
    report = module("naive_report")

    def run(side: str, seconds: float, cpu_s: float) -> Any:
        results = [report.Result(0, seconds, 0.5, 1)]
        return report.Run(side, 0, "", "", {}, {}, 0, (2, 2), seconds, cpu_s, results)

    sides = {
        "naive": [run("naive", 100.0, cpu_s)],
        "cold": [run("cold", 10.0, 9.0)],
        "warm": [],
    }
    cold = report._goals(sides, module("naive").draw_plans(1, 6), 2)[2]
    assert "| 100.0 | 10.0 | 10.0 | 8 |" in cold
    assert word in cold


@pytest.mark.long
@pytest.mark.timeout(600)
def test_both_sides_run_and_are_compared(tmp_path: Path) -> None:
    counts = {"ants": 9, "bees": 9}
    images = make_split_folder(tmp_path / "photos", {"train": counts, "val": counts})
    rows = tmp_path / "rows.jsonl"

    def run(*options: str) -> str:
        command = [sys.executable, str(BENCHMARKS / "naive.py"), f"--images={images}"]
        command += ["--backbone=test_resnet", "--weights=none", "--image-size=32", "--epochs=1"]
        command += ["--plans=3", "--batch-size=8", f"--rows={rows}", *options]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    said = run("--loader-workers=0")
    assert "All sides in one run" in said
    assert "18 train, 18 validate" in said
    assert "Warm and cold end with the same accuracy in 3 of 3 trials" in said
    assert "| naive | 0 | 2 |" in said and "| autotune | 2 | 1 |" in said
    assert [json.loads(line)["side"] for line in rows.read_text().splitlines()] == [
        "cold",
        "warm",
        "naive",
    ]
    assert "NOT of one run, on one machine" in run("--sides", "ours", "--no-profile")


def test_a_folder_without_parts_is_refused(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["naive.py", f"--images={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        module("naive").main()
    assert ended.value.code == 2
    assert f"must hold train/ and val/, but {tmp_path} has no train/" in capsys.readouterr().err
