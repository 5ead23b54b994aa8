"""The model card says what the record says."""

from __future__ import annotations

import csv
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.results.evaluation.bootstrap import Bin
from autotune.results.evaluation.model_card import (
    LISTED_CLASSES,
    describe_difference,
    model_card,
    weights_origin,
    write_model_card,
)
from autotune.results.model.model import ModelSpec
from autotune.results.model.model_folder import save_model
from tests.support.models.surgery import FAMILIES, built, kept, source

CLASSES = ("cat", "a|b\n# x", "dog")
BINS = (Bin(0.0, 0.5, 0, 0.0, 0.0), Bin(0.5, 1.0, 20, 0.75, 0.65))
MATRIX = np.array([[8, 1, 1], [0, 5, 5], [0, 0, 0]])


def facts(**changes: Any) -> dict[str, Any]:
    scores = {
        "accuracy": 0.65,
        "balanced_accuracy": 0.433,
        "macro_f1": 0.4,
        "log_loss": 0.71234,
        "calibration_error": 0.1,
    }
    ends = {name: [value - 0.05, value + 0.05] for name, value in scores.items()}
    gaps = {name: {"value": 0.0, "low": -0.04, "high": 0.04} for name in scores}
    manner = {"images": 40, "views": "online", "epochs": 9, "ema": 0.95, "part": 8, "seconds": 7.2}
    bins = [asdict(one) for one in BINS]
    return {
        "study": "pets",
        "trial": 7,
        "chosen": "trial 7, confirmed over 5 seeds",
        "remarks": ["Trial 9 was not confirmed."],
        "dataset": "photos",
        "objective": "accuracy",
        "is_baseline": False,
        "trained_on": {"parts": ["train", "validation"], **manner},
        "baseline_trained_on": {**manner, "views": 1, "ema": None},
        "test": {"images": 20, **scores},
        "baseline_test": {**scores, "accuracy": 0.5},
        "intervals": {
            "test": ends,
            "baseline": ends,
            "difference": {**gaps, "accuracy": {"value": 0.15, "low": 0.01, "high": 0.29}},
        },
        "calibration": {"test": bins, "baseline": bins},
        "times_the_test_part_was_read": 1,
        "pretrained": {"weights": "hub", "source": "timm/x", "licence": "mit", "hash": "0f"},
        **changes,
    }


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plan = kept("test_resnet")
    description = ModelSpec(
        plan, CLASSES, source("test_resnet").data_config, FAMILIES["test_resnet"].size
    )
    return save_model(tmp_path_factory.mktemp("model"), built(plan), description, facts())


def test_every_figure_is_there(record: dict[str, Any], tmp_path: Path) -> None:
    write_model_card(tmp_path, record, MATRIX, BINS)
    text = (tmp_path / "README.md").read_text("utf-8")
    for line in (
        "# pets",
        "| accuracy (top-1) | 65.00% (60.00% to 70.00%) | 50.00% (60.00% to 70.00%) | "
        "+15.00 (+1.00 to +29.00) |",
        "| log loss | 0.7123 (0.6623 to 0.7623) | 0.7123 (0.6623 to 0.7623) | "
        "+0.0000 (−0.0400 to +0.0400) |",
        "| 50% to 100% | 20 | 75.0% | 65.0% |",
        "| views of each image | a new one in every epoch | 1, not augmented |",
        "| average of the weights | decay 0.9500 | none |",
        "Trial 9 was not confirmed.",
        f"| parameters | {record['parameters']:,} |",
        "| cat | 10 | 80.0% |",
        r"| a\|b \# x | 10 | 50.0% |",
        "| input | 3 x 64 x 64 |",
        "test_resnet started from the weights of timm/x; timm states mit.",
    ):
        assert f"{line}\n" in text, line
    assert "The test split was read once." in text
    assert "the plan of trial 7, confirmed over 5 seeds:" in text
    assert "interval +1.00 to +29.00): this model is better." in text
    assert "top-5" not in text and "0% to 50%" not in text
    assert record["plan"]["backbone"] in text
    with (tmp_path / "confusion_matrix.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    # Line breaks of names are written out in tables.
    assert [row[0] for row in table[1:]] == [name.replace("\n", r"\n") for name in CLASSES]
    assert [[int(one) for one in row[1:]] for row in table[1:]] == MATRIX.tolist()


@pytest.mark.parametrize(
    ("metric", "gap", "said"),
    [
        ("accuracy", (0.021, 0.009, 0.033), "this model is better."),
        ("accuracy", (-0.021, -0.033, -0.009), "this model is worse."),
        ("accuracy", (0.021, -0.009, 0.05), "The interval includes 0: the test split does not"),
        ("log_loss", (-0.1, -0.2, -0.05), "this model is better."),
        ("log_loss", (0.1, 0.05, 0.2), "this model is worse."),
    ],
)
def test_a_difference_in_a_sentence(
    metric: str, gap: tuple[float, float, float], said: str
) -> None:
    found = describe_difference(
        metric, {metric: dict(zip(("value", "low", "high"), gap, strict=True))}
    )
    assert said in found
    # A gain has the sign of an improvement, also where less is better.
    is_gain = (gap[0] > 0) == (metric == "accuracy")
    assert (
        f"The gain in {metric.replace('_', ' ')}".replace("accuracy", "accuracy (top-1)") in found
    )
    assert f"over the baseline is {'+' if is_gain else '−'}" in found
    assert (" points (95" in found) == (metric == "accuracy")


MANY = LISTED_CLASSES + 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pretrained": {"weights": "none", "hash": "0f"}}, "started from random weights."),
        ({"pretrained": {"weights": "file", "hash": "0f"}}, "(fingerprint 0f) of unknown lic"),
        ({"pretrained": {"weights": "shipped", "hash": "0f"}}, "autotune ships (Apache-2.0)."),
        ({"pretrained": {"weights": "hub", "source": "a/b", "hash": ""}}, "states no license"),
        ({"times_the_test_part_was_read": 3}, "The test split was read 3 times"),
        ({"is_baseline": True}, "This model is the baseline."),
        (
            {"classes": [f"class {number}" for number in range(MANY)]},
            "7 more classes are in `confusion_matrix.csv`.",
        ),
    ],
)
def test_other_models(record: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    matrix = np.eye(MANY, dtype=np.int64) if "classes" in changes else MATRIX
    assert said in model_card({**record, **changes}, matrix)


def test_where_weights_come_from() -> None:
    backbone = source("test_resnet")
    assert weights_origin(backbone, "none") == {"weights": "none", "hash": backbone.weights_hash}
    assert weights_origin(backbone, "a.pth")["weights"] == "file"
    assert weights_origin(backbone, "hub")["source"].startswith("timm/")
    origin = weights_origin(replace(backbone, package="x 0.1"), "hub")
    assert (origin["weights"], origin["source"]) == ("package", "the package x 0.1")
