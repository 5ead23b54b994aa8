"""``autotune compare``: the tables, the figure, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands.inside import call, contents
from tests.support.study.studies import kept_study

pytestmark = pytest.mark.usefixtures("closed_connections")


@pytest.fixture
def compared(url: str) -> str:
    kept_study(url, "photos", trials=12)
    kept_study(url, "of two words", trials=6, seed=3)
    kept_study(url, "log-loss", trials=6, objective="log_loss")
    kept_study(url, "two", trials=12, others={"convnext_tiny": 7})
    return url


def test_what_is_shown(compared: str, tmp_path: Path) -> None:
    extra = {"AUTOTUNE_STORAGE": compared}
    ended = call("compare", "photos", "of two words", "-o", "c.html", cwd=tmp_path, **extra)
    assert (ended.code, ended.err) == (0, "")
    titles = ["best after ", "best after a device time of ", "best plan ", "settings that differ "]
    assert all(f"\n {title}" in ended.out for title in titles)
    assert ended.out.count("of two words") >= 4 and "The studies have" not in ended.out
    assert ended.out.endswith("figure: c.html\n")
    assert "plotly" in (tmp_path / "c.html").read_text()[:500_000]
    ended = call("compare", "photos", "log-loss", cwd=tmp_path, **extra)
    assert ended.out.startswith("The studies have different metrics: accuracy in photos, ")
    values = json.loads(call("compare", "two", "--json", cwd=tmp_path, **extra).out)
    assert [group["label"] for group in values["groups"]][0::2] == [
        "two",
        "two: test_resnet.r160_in1k",
    ]


#: Arguments that are refused, and what is said.
REFUSED = (
    (("photos",), "compare needs two studies, or one in which backbone or init vary"),
    (("photos", "photos"), "each once, but got 'photos', 'photos'"),
    (("photos", "photo"), "did you mean 'photos'?"),
    (("photos", "two", "-o", "c.png"), "the figure is a file .html, but got 'c.png'"),
    (("photos", "two", "-o", "no/c.html"), "must exist and be writable"),
    (("photos", "log-loss", "-o", "c.html"), "a figure has one metric, but The studies"),
    (("training.epochs=3",), "name at least one study"),
)


def test_what_is_refused(compared: str, tmp_path: Path) -> None:
    before = contents(tmp_path)
    for arguments, text in REFUSED:
        ended = call("compare", *arguments, cwd=tmp_path, AUTOTUNE_STORAGE=compared)
        assert (ended.code, ended.out) == (2, "") and text in ended.err, arguments
        assert contents(tmp_path) == before
