"""The formats of a report: Markdown, JSON and tables."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from datetime import UTC
from typing import Any

import pandas as pd
import pytest
from optuna.study import Study

from autotune.errors import UserError
from autotune.results.report import formats
from autotune.results.report.dataframe import trials_frame
from autotune.results.report.formats import render, resolve_format
from autotune.results.report.markdown import BEST_SHOWN
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.study.studies import HOSTILE, make_study

URL = "postgresql://me:secret@db.example.org/studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


def bytes_of(study: Study, format: str) -> bytes:
    return render(StudyResults.from_study(study), format, URL)


def text_of(study: Study, format: str) -> str:
    return bytes_of(study, format).decode()


@pytest.mark.parametrize(
    ("path", "given", "meant"),
    [
        (None, None, "html"),
        (None, "md", "md"),
        ("a.json", None, "json"),
        ("a.HTM", None, "html"),
        ("a.b/c", None, "html"),
        ("a.txt", "md", "md"),
        ("a.csv", "csv", "csv"),
        ("-", "csv", "csv"),
        ("a.csv", "epochs", "epochs"),
        (None, "epochs", "epochs"),
        ("a.csv", "predictions", "predictions"),
    ],
)
def test_the_ending_says_the_format(path: str | None, given: str | None, meant: str) -> None:
    assert resolve_format(path, given) == meant


@pytest.mark.parametrize(
    ("path", "given", "said"),
    [
        ("a.json", "md", "md and the file a.json contradict each other; .* end in .md"),
        ("a.txt", None, "a.txt: the ending .* html, md, json, csv, parquet, yaml; .* --format md"),
        (None, "pdf", "must be one of html, md, .*, yaml, epochs, predictions, but got 'pdf'"),
        ("a.md", "epochs", "epochs and the file a.md contradict each other; .* end in .csv"),
        ("a.html", "predictions", "predictions and the file a.html .* end in .csv"),
    ],
)
def test_a_contradiction_is_a_mistake(path: str | None, given: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_format(path, given)


def test_markdown_answers_first(study: Study) -> None:
    lines = text_of(study, "md").splitlines()
    assert lines[0] == "# Study digits"
    assert lines[2].startswith("**Baseline 84.2 % → best 91.7 % (trial 7, +7.5 points): last 4")
    assert [one for one in lines if one.startswith("## ")] == [
        *("## What next", "## The numbers", "## Best plan: trial 7", "## Best trials"),
        "## Failures",
        *("## Questions to ask of a study", "## Again"),
    ]
    at = lines.index("| trial | accuracy | chance to be the best | epochs | seconds | plan |")
    rows = [one for one in lines[at + 2 :] if one][:BEST_SHOWN]
    assert re.match(r"\| 7 best \| 91.7 % \| \d+ % \| 10 \| 155.0 \| last 4 layers", rows[0])
    assert any(one.startswith("| 0 baseline | 84.2 %") for one in rows)
    assert "autotune run digits.yaml --name digits-again" in text_of(study, "md")
    two = text_of(make_study(objectives=("accuracy", "latency_ms")), "md").splitlines()
    assert "## Pareto front" in two
    assert "| trial | accuracy | latency | epochs | seconds | plan |" in two


@pytest.mark.parametrize(
    "made",
    [
        {"trials": 0, "running": 0, "failed": 0, "retried": 0},
        {"trials": 0, "running": 2, "failed": 0, "retried": 0},
        {"trials": 1, "running": 0, "failed": 0, "retried": 0},
        {"objective": "log_loss"},
        {"gain": -0.05},
        {"hostile": True, "name": HOSTILE},
    ],
    ids=str,
)
def test_every_kind_of_study_has_every_format(made: dict[str, Any]) -> None:
    made_study = make_study(**made)
    for format in ("md", "json", "csv", "parquet", "epochs"):
        content = bytes_of(made_study, format)
        assert content and b"secret" not in content
    # In a table a line break or a bar would end the cell, and a tag would be one.
    for line in text_of(made_study, "md").partition("```")[0].splitlines():
        assert "<script>" not in line.replace(r"\<", "")
        assert not line.startswith("|") or line.replace(r"\|", "").count("|") == 4


def test_json_holds_everything(study: Study) -> None:
    read = {"trial": 7, "test": {"accuracy": 0.9}, "baseline": {"accuracy": 0.8}}
    study.set_user_attr(attrs.TEST_READS, [read])
    study.set_user_attr(attrs.SURVEY, {"odd": float("nan")})
    text = text_of(study, "json")
    assert "NaN" not in text and "Infinity" not in text
    values = json.loads(text)
    assert values["survey"] == {"odd": None}
    assert values["format"] == 2
    assert values["objectives"] == [{"name": "accuracy", "direction": "maximize"}]
    assert values["best"] == values["trials"][7]
    assert values["baseline"] == values["trials"][0]
    assert values["fit"] == [read]
    assert values["diagnostics"][0].keys() == {"question", "answer", "severity", "advice"}
    assert values["progress"]["finished"] == 25
    assert values["definition"]["training"]["epochs"] == 10
    best = values["best"]
    assert best["value"] == study.best_value
    assert best["plan_in_full"]["depth"] == best["params"]["depth"] == 4
    start = study.best_trial.datetime_start
    assert start is not None and best["started"] == start.astimezone(UTC).isoformat()
    curve = study.best_trial.intermediate_values
    assert best["curve"] == [[epoch, curve[epoch]] for epoch in sorted(curve)]


def test_the_tables_are_the_frame(study: Study) -> None:
    frame = trials_frame(StudyResults.from_study(study))
    parquet = pd.read_parquet(io.BytesIO(bytes_of(study, "parquet")))
    pd.testing.assert_frame_equal(parquet, frame)
    csv = pd.read_csv(io.BytesIO(bytes_of(study, "csv")), parse_dates=["started", "ended"])
    assert list(csv) == list(frame)
    assert csv["value"].equals(frame["value"])
    assert str(csv["started"].dtype.tz) == "UTC"  # type: ignore[union-attr]


def test_parquet_without_pyarrow_says_what_to_install(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pyarrow, .* 'autotune\[parquet\]', or write csv"):
        bytes_of(study, "parquet")


def test_no_format_imports_torch_and_the_page_no_pandas() -> None:
    program = (
        "import sys, autotune.results.report.formats\n"
        "assert not {'torch', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
