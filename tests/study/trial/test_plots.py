"""The pictures of a trial: which images are the worst, and that any names can be drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autotune.data.drawing import plot_label
from autotune.study.state.predictions import WORST, ImagePrediction
from autotune.study.trial.plots import draw_confusion, draw_curve, draw_worst
from autotune.study.trial.predictions import highest_loss_first, predict_rows
from tests.support.study.studies import curves_of


def test_the_highest_loss_comes_first() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.1, 0.0], [5.0, 0.0]])
    rows = predict_rows(["a", "b", "c", "d"], logits, torch.tensor([0, 0, 0, 1]), ["x", "y"])
    assert [one.path for one in rows] == ["d", "b", "c", "a"]
    assert [(one.true_class, one.predicted_class) for one in rows[:2]] == [("y", "x"), ("x", "y")]
    assert rows[0].top[0][1] == pytest.approx(1 / (1 + 2.718281828**-5), abs=1e-6)
    assert rows[0].true_probability == pytest.approx(1 - rows[0].top[0][1], abs=1e-6)
    assert rows[2].true_probability == rows[2].top[0][1]


def test_a_loss_beyond_single_precision_is_still_in_order() -> None:
    logits = torch.tensor([[0.0, 200.0], [0.0, 400.0], [0.0, 300.0]])
    assert highest_loss_first(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [1, 2, 0]


@pytest.mark.parametrize("side", [16, 224])
def test_a_sheet_of_any_classes(tmp_path: Path, side: int) -> None:
    classes = ["$x$ and $", "größer", "数字", "a\nb\tc", "", "long " * 40]
    classes += [f"class {number}" for number in range(len(classes), 1000)]
    torch.manual_seed(0)
    names = [f"{'long ' * 40}/{number} 数字.jpg" for number in range(40)]
    labels = torch.arange(40) % 6
    worst = predict_rows(names, torch.randn(40, 1000), labels, classes, count=WORST)
    views = torch.randint(0, 256, (WORST, 3, side, side), dtype=torch.uint8)
    path = draw_worst(tmp_path, worst, [*views])
    with Image.open(path) as sheet:
        sheet.load()
        assert (path.name, sheet.format, sheet.size) == ("worst_images.jpg", "JPEG", (656, 888))


def test_a_sheet_shows_the_images_and_marks_what_is_wrong(tmp_path: Path) -> None:
    view = torch.zeros(3, 8, 8, dtype=torch.uint8)
    view[2] = 255
    wrong = ImagePrediction("one/a.jpg", "one", 2.3, 0.1, (("two", 0.9),))
    right = ImagePrediction("two/b.jpg", "two", 0.5, 0.6, (("two", 0.6),))
    path = draw_worst(tmp_path, [wrong, right], [view, view])
    with Image.open(path) as sheet:
        assert sheet.size == (656, 255)
        red, green, blue = sheet.getpixel((60, 100))
        assert blue > 240 and red < 15 and green < 15
        below = [sheet.crop((left, 207, left + 144, 222)) for left in (16, 176)]
    for place, (most, least) in zip(below, [(0, 1), (1, 0)], strict=True):  # red, then green
        colours = np.asarray(place, dtype=int)
        assert (colours[..., most] - colours[..., least]).max() > 40


@pytest.mark.parametrize(
    "classes",
    [
        ["x" * 5000, "日本の犬", "🐈‍⬛ cat", "שלום כלב", "$a$ and $", "a_b^c$", "a\nb", ""],
        ["W" * 66] * 2,
        ["W" * 66] * 25,
    ],
)
def test_a_matrix_of_any_classes_is_drawn_without_a_warning(
    tmp_path: Path, classes: list[str]
) -> None:
    path = draw_confusion(tmp_path, np.eye(len(classes), dtype=np.int64), classes)
    with Image.open(path) as picture:
        assert min(picture.size) > 300


def test_long_names_in_a_plot_lose_their_middle() -> None:
    assert plot_label("golden retriever of a kind, number 2") == "golden retr…, number 2"
    assert plot_label("犬 $a$") == "□ $a$"


@pytest.mark.parametrize(
    ("values", "stored", "panels"),
    [
        ({1: 0.5, 2: 0.6}, curves_of([0.5, 0.4], [0.6, 0.5]), 2),
        ({1: 0.5, 2: 0.6}, {}, 1),  # of an earlier version
        ({}, {"training_loss": [0.5, 0.4], "validation_loss": [None, None]}, 1),  # a refit
        ({}, {}, 1),
    ],
)
def test_the_curve_of_what_is_known(
    tmp_path: Path, values: dict[int, float], stored: dict[str, Any], panels: int
) -> None:
    with Image.open(draw_curve(tmp_path, values, "accuracy", stored)) as picture:
        assert picture.size == (500, 320 * panels)
