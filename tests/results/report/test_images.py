"""Single images in a report: from the files of trials to the page, the table and JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autotune.errors import UserError
from autotune.results.report.formats import render
from autotune.results.report.images import (
    MATRIX_CLASSES,
    describe_missing,
    find_image_results,
    predictions_csv,
)
from autotune.results.study_results import StudyResults
from tests.support.study.predictions import with_predictions
from tests.support.study.studies import HOSTILE, make_results

NAMES = ["a class with blanks", HOSTILE, "数字", "=cmd()", "x" * 200, "שלום"]
#: Images of six classes, three of each.
LABELS = torch.arange(18) % 6


@pytest.fixture(scope="module")
def study() -> StudyResults:
    return make_results()


def logits_of(predicted: Tensor, sureness: float = 2.0) -> Tensor:
    return torch.nn.functional.one_hot(predicted, 6) * sureness


def add(results: StudyResults, folder: Path, **wrong: dict[int, int]) -> StudyResults:
    """Give the best trial and the baseline predictions, some of which are wrong."""
    assert results.best is not None and results.baseline is not None
    logits = {}
    for who, number in (("best", results.best.number), ("baseline", results.baseline.number)):
        predicted = LABELS.clone()
        for image, label in wrong.get(who, {}).items():
            predicted[image] = label
        logits[number] = logits_of(predicted)
        # The surest mistake comes first.
        for rank, image in enumerate(wrong.get(who, {})):
            logits[number][image] *= 3 - rank
    return with_predictions(results, folder, NAMES, logits, LABELS)


def test_recalls_and_their_change(study: StudyResults, tmp_path: Path) -> None:
    results = add(study, tmp_path, best={5: 0, 0: 1}, baseline={5: 0, 2: 1, 8: 1})
    found = find_image_results(results)
    assert found is not None and results.best is not None
    assert (found.split, found.network) == ("validation", f"trial {results.best.number}")
    assert found.summary() == (
        f"Trial {results.best.number} is right on 16 of 18 validation images (88.9 %). Against "
        "the baseline, 2 became right and 1 became wrong."
    )
    worst, *_ = found.recalls
    assert (worst.name, worst.correct, worst.images) == ("a class with blanks", 2, 3)
    by_name = {one.name: (one.baseline_correct, one.gained, one.lost) for one in found.recalls}
    assert by_name["a class with blanks"] == (3, 0, 1)
    assert by_name["数字"] == (1, 2, 0) and by_name["שלום"] == (2, 0, 0)
    changes = {one.name: one.format_change() for one in found.recalls}
    assert (changes["数字"], changes["שלום"]) == ("+66.7 points", "±0")
    assert [(one.path, one.predicted_class) for one in found.predictions[:2]] == [
        ("שלום/5.jpg", NAMES[0]),
        ("a class with blanks/0.jpg", NAMES[1]),
    ]
    assert len(found.tiles) == 16 and all(tile[:2] == b"\xff\xd8" for tile in found.tiles)


def test_the_table_has_every_image_and_no_formula(study: StudyResults, tmp_path: Path) -> None:
    text = render(add(study, tmp_path, best={3: 5}), "predictions").decode()
    first, *rest = csv.DictReader(io.StringIO(text))
    assert len(rest) == 17
    assert (first["path"], first["true_class"]) == ("'=cmd()/3.jpg", "'=cmd()")
    assert (first["predicted_class"], first["correct"]) == ("שלום", "False")
    assert (first["split"], first["baseline_class"]) == ("validation", "'=cmd()")
    assert float(first["loss"]) > 2 > float(rest[0]["loss"])
    probabilities = [float(first[key]) for key in ("probability", "probability_2")]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("format", ["html", "md"])
def test_names_are_text_on_every_page(study: StudyResults, tmp_path: Path, format: str) -> None:
    page = render(add(study, tmp_path, best={1: 4}), format).decode()
    assert HOSTILE not in page and "<script>alert" not in page
    assert "Your images" in page and "数字" in page and "1 became wrong" in page


def test_the_page_is_bounded(
    study: StudyResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many classes it shows pairs; of many images the command that writes the table."""
    monkeypatch.setattr("autotune.results.report.html.EMBEDDED_BYTES", 10_000)
    classes = [f"{number:03d}.object" for number in range(300)]
    labels = torch.arange(600) % 300
    logits = torch.nn.functional.one_hot((labels + (labels % 7 == 0)) % 300, 300) * 2.0
    assert study.best is not None
    results = with_predictions(study, tmp_path, classes, {study.best.number: logits}, labels)
    page = render(results, "html").decode()
    without = len(render(study, "html").decode())
    assert len(page) < without + 300_000
    assert "data:text/csv" not in page and "--format predictions" in page
    assert len(classes) > MATRIX_CLASSES and 'class="matrix"' not in page
    assert "The 15 most frequent of 43 pairs" in page and "260 more classes" in page
    assert json.loads(render(results, "json"))["images"]["correct"] == 600 - 43 * 2


def test_a_study_of_an_earlier_version_says_what_to_do(
    study: StudyResults, tmp_path: Path
) -> None:
    results = replace(study, artifacts=tmp_path)
    assert results.best is not None
    reason, command = describe_missing(results)
    assert reason.startswith("This study has no predictions of single images")
    assert command == (
        f"autotune reproduce digits --predictions predictions.csv {results.best.number}"
    )
    for format in ("html", "md"):
        assert command in render(results, format).decode()
    with pytest.raises(UserError, match="autotune reproduce digits"):
        render(results, "predictions")


@pytest.mark.parametrize("damage", [b"", b"path,loss\na,b\n", b"\xff\xfe", b"path\n" * 3])
def test_damaged_files_are_as_none(study: StudyResults, tmp_path: Path, damage: bytes) -> None:
    results = add(study, tmp_path)
    assert results.best is not None and results.baseline is not None
    (tmp_path / f"{results.best.number}/predictions.csv").write_bytes(damage)
    (tmp_path / f"{results.baseline.number}/worst_images.jpg").write_bytes(damage)
    found = find_image_results(results)  # that of the next trial with predictions
    assert found is not None and found.network.endswith("the baseline,")
    assert not found.is_compared and not found.tiles
    assert "validation" in predictions_csv(results)
