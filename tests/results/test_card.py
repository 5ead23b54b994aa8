"""The model card says what the record says."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.results.card import LISTED_CLASSES, model_card, origin_of, write_card
from autotune.results.model import Description, save_model
from tests.support.models import kept
from tests.support.surgery import FAMILIES, built, source

CLASSES = ("cat", "a|b\n# x", "dog")
MATRIX = np.array([[8, 1, 1], [0, 5, 5], [0, 0, 0]])


def facts(**changes: Any) -> dict[str, Any]:
    scores = {"accuracy": 0.65, "balanced_accuracy": 0.433, "macro_f1": 0.4, "log_loss": 0.71234}
    return {
        "study": "pets",
        "trial": 7,
        "dataset": "photos",
        "trained_on": {"parts": ["train", "validation"], "images": 40},
        "test": {"images": 20, **scores},
        "baseline_test": {**scores, "accuracy": 0.5},
        "times_the_test_part_was_read": 1,
        "pretrained": {"weights": "hub", "source": "timm/x", "licence": "mit", "hash": "0f"},
        **changes,
    }


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plan = kept("test_resnet")
    description = Description(
        plan, CLASSES, source("test_resnet").data_config, FAMILIES["test_resnet"].size
    )
    return save_model(tmp_path_factory.mktemp("model"), built(plan), description, facts())


def test_every_figure_is_there(record: dict[str, Any], tmp_path: Path) -> None:
    write_card(tmp_path, record, MATRIX)
    text = (tmp_path / "README.md").read_text("utf-8")
    for line in (
        "# pets",
        "| accuracy | 65.00% | 50.00% |",
        "| log loss | 0.7123 | 0.7123 |",
        f"| parameters | {record['parameters']:,} |",
        "| cat | 10 | 80.0% |",
        r"| a\|b \# x | 10 | 50.0% |",
        "| input | 3 x 64 x 64 |",
        "test_resnet started from the weights of timm/x; timm states mit.",
    ):
        assert f"{line}\n" in text, line
    assert "The test images were looked at once." in text
    assert record["plan"]["backbone"] in text
    with (tmp_path / "confusion_matrix.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    assert [row[0] for row in table[1:]] == list(CLASSES)
    assert [[int(one) for one in row[1:]] for row in table[1:]] == MATRIX.tolist()


@pytest.mark.parametrize(
    ("pretrained", "said"),
    [
        ({"weights": "none", "hash": "0f"}, "test_resnet started from random weights."),
        ({"weights": "file", "hash": "0f"}, "(fingerprint 0f); their licence is not known here."),
        ({"weights": "shipped", "hash": "0f"}, "the weights that autotune ships (Apache-2.0)."),
        ({"weights": "hub", "source": "a/b", "hash": "0f"}, "of a/b; timm states no licence"),
    ],
)
def test_licences(record: dict[str, Any], pretrained: dict[str, str], said: str) -> None:
    assert said in model_card({**record, "pretrained": pretrained}, MATRIX)


def test_a_test_part_that_was_looked_at_often(record: dict[str, Any]) -> None:
    said = model_card({**record, "times_the_test_part_was_read": 3}, MATRIX)
    assert "The test images were looked at 3 times" in said


def test_many_classes(record: dict[str, Any]) -> None:
    count = LISTED_CLASSES + 7
    many = {**record, "classes": [f"class {number}" for number in range(count)]}
    text = model_card(many, np.eye(count, dtype=np.int64))
    assert "7 more classes are in `confusion_matrix.csv`." in text


def test_where_weights_come_from() -> None:
    backbone = source("test_resnet")
    assert origin_of(backbone, "none") == {"weights": "none", "hash": backbone.weights_hash}
    assert origin_of(backbone, "a.pth")["weights"] == "file"
    assert origin_of(backbone, "hub")["source"].startswith("timm/")
