"""The report as a page: rendered and read back, and looked at in a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from optuna.study import Study
from plotly.offline import get_plotlyjs

from autotune.results.diagnosis.diagnostics import diagnose
from autotune.results.diagnosis.facts import Facts
from autotune.results.report.trial_table import backbone_rows, choose_rows
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from tests.support.pages.browser import open_page, until
from tests.support.pages.page import Parsed, html_of, page_of, report_page
from tests.support.study.studies import HOSTILE, ONE_PARAMETER, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser

URL = "postgresql://me:secret@db.example.org/studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="module")
def page(study: Study) -> Parsed:
    return page_of(study, URL)


def test_every_figure_is_json_of_its_own() -> None:
    rendered = html_of(make_study(hostile=True))
    sources = re.findall(
        r'<script type="application/json" class="figure">(.*?)</script>', rendered
    )
    # Losses of three trials and the baseline; of 17 complete trials there are no importances.
    assert len(sources) == 3 + 10 + 4
    assert all({"data", "layout"} <= set(json.loads(source)) for source in sources)


@pytest.mark.parametrize(
    "made",
    [
        {"trials": 0, "running": 0, "failed": 0},
        {"trials": 0, "running": 2, "failed": 1},
        {"trials": 1, "running": 0, "failed": 0},
        {"trials": 2, "running": 0, "failed": 0},
        {"trials": 3, "waiting": 2},
        {"trials": 20, "constraints": {"max_latency_ms": 0.1}},
        {"trials": 40, "gain": -0.05},
        {"trials": 40, "others": {"small": 3, "large": 20}},
        {"space": ONE_PARAMETER},
        {"objective": "log_loss", "layers": 60},
        {"objectives": ["accuracy", "latency_ms"], "trials": 0, "failed": 0},
        {"objectives": ["accuracy", "latency_ms"], "trials": 1, "failed": 0},
        {"objectives": ["accuracy", "parameters"], "trials": 40},
        {"objectives": ["log_loss", "memory_mb"], "hostile": True, "name": HOSTILE},
        {"hostile": True, "name": HOSTILE},
    ],
    ids=str,
)
def test_every_kind_of_study_gives_a_well_formed_page(made: dict[str, Any]) -> None:
    study = make_study(**made)
    rendered = html_of(study, URL)
    page = Parsed(rendered)
    assert not page.open
    assert len(page.having("h1")) == 1
    # One script of ours, the rest are data; nothing a name brought in.
    assert len([script for script in page.having("script") if "type" not in script]) == 1
    for _, attributes in page.tags:
        assert not attributes.get("src")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "data:").startswith(("data:", "#"))
    assert "<script>alert" not in rendered and "secret" not in rendered
    if "hostile" in made:
        assert f"digit 3{HOSTILE}" in page.text
    has_front = "objectives" in made and made.get("trials") != 0
    assert ("Metric against cost" in page.of("h2")) == has_front
    assert len(page.having("table", **{"class": "front stacked"})) == has_front
    found = diagnose(Facts(StudyResults.from_study(study)))
    assert all(one.answer.endswith(".") and "nan" not in one.answer for one in found.values())
    assert sorted(text for text in page.of("dt") if text.endswith("?")) == sorted(found)
    # What cannot be told comes last.
    tags = [text for text in page.of("span") if text in ("ok", "warning", "action", "not yet")]
    assert tags == sorted(tags, key="not yet".__eq__)


def test_the_page_names_networks_and_edges(page: Parsed) -> None:
    assert [text.split(",")[0] for text in page.of("h3") if "accuracy" in text] == [
        *("Baseline", "Best: trial 7")
    ]
    assert len(page.having("ol", **{"class": "network"})) == 2
    assert "units of hidden layer 1 (head.units.1) = 512" in page.of("b")
    question = "Does the best plan lie at an edge of the space? Yes: "
    assert f"{question}hidden layers of the head (head.hidden_layers) = 2 at the " in page.text
    assert "secret" not in page.text


def test_commands_in_the_text_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.results.report.trial_table.MAX_ROWS", 4)
    found = page_of(make_study(name="-a b", trials=6), "sqlite:////data/a b.db").of("code")
    end = "--storage 'sqlite:////data/a b.db' -- '-a b'"
    assert found == [f"autotune report --format {format} {end}" for format in ("epochs", "csv")]


def test_several_backbones_are_compared() -> None:
    study = make_study(others={"small": 3})
    results = StudyResults.from_study(study)
    assert results.best is not None
    page = page_of(study)
    assert "Study digits, test_resnet.r160_in1k, small on digits" in page.text
    assert results.describe_plan(results.best) in page.text
    assert "Values over backbone" in html_of(study)
    first, second = backbone_rows(results)
    assert (first.layers, second.layers) == (5, 3) and first.mark.endswith("baseline")
    best = results.describe_plan(results.best).partition(":")[0]
    assert [row.name for row in (first, second) if "best" in row.mark] == [best]
    assert first.trials + second.trials == results.progress.complete
    assert first.value.endswith("%") and second.value.endswith("%")


def test_what_is_odd_about_the_images_is_on_the_page(page: Parsed) -> None:
    assert "duplicates" not in page.of("dt")
    study = make_study()
    dataset = {**study.user_attrs[attrs.DATASET], "skipped": []}
    study.set_user_attr(attrs.DATASET, dataset)
    assert "cannot be decoded" not in page_of(study).text
    skipped = [["ant/00.png", "not an image"], ["bee/01.png", "<b>cut off</b>"]]
    study.set_user_attr(attrs.DATASET, {**dataset, "skipped": skipped})
    found = {
        "mode": "report",
        **{"images": 500, "unreadable": 0, "small": 0, "exact": 2, "near": 4, "too_many": False},
        **{"test": 1, "validation": 0, "classes": 0},
        "examples": [["a/<1>.png", "train", "b/2.png", "test", "near"]],
    }
    study.set_user_attr(
        attrs.SURVEY, {"largest": ["a", 90], "smallest": ["<b>", 9], "duplicates": found}
    )
    page = page_of(study)
    text = "2 that cannot be decoded: ant/00.png (not an image); bee/01.png (<b>cut off</b>)"
    assert text in page.text
    notes = " ".join(page.of("li"))
    assert "'<b>' 9. See training.objective: balanced_accuracy" in notes
    assert "1 test image is like one of training or validation (a/<1>.png (train) and" in notes
    assert any(text.startswith("2 of 500 images") for text in page.of("dd"))


def test_plotly_is_there_once(study: Study) -> None:
    rendered = html_of(study)
    packed = re.findall(r'<script type="application/gzip" id="plotly">(.*?)</script>', rendered)
    assert len(packed) == 1
    assert gzip.decompress(base64.b64decode(packed[0])).decode() == get_plotlyjs()
    assert rendered.index(packed[0]) > rendered.index("</table>")


def test_the_page_works_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    limits = {"objectives": ["accuracy", "latency_ms"], "constraints": {"max_latency_ms": 1.2}}
    study = make_study(hostile=True, name=HOSTILE, trials=30, **limits)
    viewport = {"width": 390, "height": 800}
    page, messages, requests = report_page(browser, study, tmp_path, viewport=viewport)
    assert messages == []
    assert requests == [(tmp_path / "report.html").as_uri()]
    assert page.locator(".plot").count() == 16
    drawn = "document.querySelectorAll('.plot .main-svg .trace path, .plot .points path').length"
    assert page.evaluate(drawn) > 100
    # Wide things scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 360, "height": 800})
    widths = "[...document.querySelectorAll('.stacked')].map(e => e.parentElement.scrollWidth)"
    assert set(page.evaluate(widths)) == {334}, "tables fit on a phone"
    page.set_viewport_size(viewport)

    values = page.locator(".trials tbody td:nth-child(3)")
    button = page.locator(".trials th:nth-child(3) button")
    assert button.inner_text() == "accuracy"
    for order, sign in (("ascending", 1), ("descending", -1)):
        button.click()
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == order
        texts = [text for text in values.all_inner_texts() if text != "–"]
        numbers = [sign * float(text.split()[0]) for text in texts]
        assert numbers == sorted(numbers)
        assert values.all_inner_texts()[len(texts) :] == ["–"] * (values.count() - len(texts))
    assert messages == []
    page.close()


def test_two_thousand_trials_can_be_looked_at(browser: Browser, tmp_path: Path) -> None:
    study = make_study(trials=2000, failed=40, retried=40, workers=8, budget=2000)
    start = time.process_time()
    html_of(study)
    assert time.process_time() - start < 20
    viewport = {"width": 1200, "height": 900}
    page, messages, _ = report_page(browser, study, tmp_path, viewport=viewport)
    assert (tmp_path / "report.html").stat().st_size < 9e6
    # The best and the newest ones: a line above the table says how many are left out.
    rows, total = page.locator(".trials tbody tr").count(), len(study.trials)
    assert rows == len(choose_rows(StudyResults.from_study(study))) < total
    assert f"{rows:,} of {total:,} trials" in page.locator("main").inner_text()
    # The table scrolls by itself, below its head: what follows it is not thousands of rows away.
    assert page.evaluate("document.documentElement.scrollHeight") < 12_000
    for _ in range(2):  # the table begins with the best; up, then down
        page.locator(".trials th:nth-child(1) button").click()
    first = page.locator(".trials tbody tr:first-child td:first-child").inner_text()
    assert first == str(total - 1)
    assert messages == []
    page.close()


def test_the_page_follows_the_color_scheme(browser: Browser, tmp_path: Path) -> None:
    study = make_study(trials=6)
    page, messages, _ = report_page(browser, study, tmp_path, color_scheme="light")
    colors = "[getComputedStyle(document.body).backgroundColor, getComputedStyle("
    colors += "document.querySelector('.xtick text')).fill]"
    light = page.evaluate(colors)
    page.emulate_media(color_scheme="dark")
    until(page, f"{colors}[1] !== {json.dumps(light[1])}")
    dark = page.evaluate(colors)
    assert _lightness(light[0]) > _lightness(light[1]) + 100
    assert _lightness(dark[0]) < _lightness(dark[1]) - 100
    assert messages == []
    page.close()


def _lightness(color: str) -> float:
    return sum(float(channel) for channel in re.findall(r"\d+", color)[:3]) / 3


@pytest.mark.slow
def test_a_page_has_its_figures_when_it_has_loaded(browser: Browser, tmp_path: Path) -> None:
    """Whatever prints it then, such as ``chromium --print-to-pdf``, prints them too."""
    path = tmp_path / "report.html"
    path.write_text(html_of(make_study(trials=12)), encoding="utf-8")
    page, messages, _ = open_page(browser, path.as_uri())
    drawn = "[...document.querySelectorAll('.plot')].map(one => !!one.querySelector('.main-svg'))"
    assert set(page.evaluate(drawn)) == {True} and not messages
    assert page.locator("iframe").count() == 0
    empty = "getComputedStyle(document.querySelector('.plot'), '::after').content"
    page.emulate_media(media="print")
    assert page.evaluate(empty) == "none"
    # Paper is narrower than the window: a figure becomes smaller, and is not cut off.
    page.evaluate("document.querySelector('main').style.width = '300px'")
    wide = "[...document.querySelectorAll('.plot')].some(one => one.scrollWidth > one.clientWidth)"
    assert not page.evaluate(wide)
    boxes = "[...document.querySelectorAll('.main-svg')].every(one => one.hasAttribute('viewBox'))"
    assert page.evaluate(boxes)
    page.evaluate("document.querySelector('.plot').replaceChildren()")
    assert "needs JavaScript" in page.evaluate(empty)
    page.close()


@pytest.mark.slow
def test_a_page_without_javascript_says_so(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html_of(make_study(trials=12)), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert "The figures need JavaScript" in page.locator("body").inner_text()
    context.close()
