"""The report: the page a study leaves behind, rendered and read back."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from autotune import atomic
from autotune.errors import DiskFullError
from autotune.results.figures.thinning import choose_rows
from autotune.results.report.backbones import backbones_of
from autotune.results.report.html import render_report, write_report
from autotune.results.study_results import StudyResults
from autotune.search import ranking
from autotune.study.state import attrs
from tests.support.browser import open_page, until
from tests.support.page import Parsed
from tests.support.studies import HOSTILE, ONE_PARAMETER, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

URL = "postgresql://me:secret@db.example.org/studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="module")
def page(study: Study) -> Parsed:
    return Parsed(render_report(study, URL))


def test_the_pictures_show_baseline_and_best(page: Parsed) -> None:
    assert [text.split(",")[0] for text in page.of("h3") if "accuracy" in text] == [
        "Baseline",
        "Best: trial 7",
    ]
    assert len(page.having("ol", **{"class": "network"})) == 2


def test_edges_of_the_space_are_named(page: Parsed) -> None:
    assert "head.units.1 = 512" in page.of("b")
    said = (
        "Does the best plan lie at an edge of the space? Yes: head.hidden_layers = 2 at the upper"
    )
    assert said in page.text


def test_every_figure_is_json_of_its_own() -> None:
    rendered = render_report(make_study(hostile=True))
    sources = re.findall(
        r'<script type="application/json" class="figure">(.*?)</script>', rendered
    )
    assert len(sources) == 4 + 10
    assert all({"data", "layout"} <= set(json.loads(source)) for source in sources)


@pytest.mark.parametrize(
    "made",
    [
        {"trials": 0, "running": 0, "failed": 0},
        {"trials": 1, "running": 0, "failed": 0},
        {"trials": 0, "running": 2, "failed": 0},
        {"trials": 3, "waiting": 2},
        {"space": ONE_PARAMETER},
        {"objective": "log_loss"},
        {"gain": -0.05},
        {"layers": 60},
        {"others": {"small": 3, "large": 20}},
        {"hostile": True, "name": HOSTILE},
    ],
    ids=str,
)
def test_every_kind_of_study_gives_a_well_formed_page(made: dict[str, Any]) -> None:
    parsed = Parsed(render_report(make_study(**made), URL))
    assert not parsed.open
    assert len(parsed.having("h1")) == 1
    # One script of ours, the rest are data; nothing a name brought in.
    assert len([one for one in parsed.having("script") if "type" not in one]) == 1
    for _, attributes in parsed.tags:
        assert not attributes.get("src")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "data:").startswith("data:")


def test_a_study_that_remembers_nothing_is_reported() -> None:
    parsed = Parsed(render_report(optuna.create_study()))
    assert "Nothing has run yet" in parsed.text


def test_several_backbones_are_compared() -> None:
    made = make_study(others={"small": 3})
    best = ranking.best_trial(made.trials, made.direction)
    assert best is not None
    plan = attrs.trial_plan(best)
    assert plan is not None
    parsed = Parsed(render_report(made))
    assert "Study digits, test_resnet.r160_in1k, small on digits" in parsed.text
    assert f"{plan.describe(named=True)}" in parsed.text
    assert "Values over backbone" in str(render_report(made))
    found = {row.name: row for row in backbones_of(made, made.trials, best)}
    assert [row.layers for row in found.values()] == [5, 3]
    assert found["test_resnet.r160_in1k"].mark.endswith("baseline")
    assert "best" in found[plan.backbone].mark
    complete = [one for one in made.trials if one.state == TrialState.COMPLETE]
    assert sum(row.trials for row in found.values()) == len(complete)
    assert all(row.value.endswith("%") for row in found.values())


def test_images_that_were_left_out_are_named() -> None:
    made = make_study(trials=1)
    dataset = made.user_attrs[attrs.DATASET]
    skipped = [["ant/00.png", "not an image"], ["bee/01.png", "<b>cut off</b>"]]
    made.set_user_attr(attrs.DATASET, {**dataset, "skipped": skipped})
    text = Parsed(render_report(made)).text
    assert (
        "2 that cannot be decoded: ant/00.png (not an image); bee/01.png (<b>cut off</b>)" in text
    )
    made.set_user_attr(attrs.DATASET, {**dataset, "skipped": []})
    assert "cannot be decoded" not in Parsed(render_report(made)).text


def test_plotly_is_there_once(study: Study) -> None:
    rendered = render_report(study)
    packed = re.findall(r'<script type="application/gzip" id="plotly">(.*?)</script>', rendered)
    assert len(packed) == 1
    assert gzip.decompress(base64.b64decode(packed[0])).decode() == get_plotlyjs()
    assert rendered.index(packed[0]) > rendered.index("</table>")


def test_hostile_names_are_text() -> None:
    rendered = render_report(make_study(hostile=True, name=HOSTILE))
    assert "<script>alert" not in rendered
    assert f"digit 3{HOSTILE}" in Parsed(rendered).text


def test_write_makes_folders_and_leaves_nothing_else(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "of" / "digits.html"
    assert write_report(study, path) == path
    assert write_report(study, path) == path
    assert [one.name for one in path.parent.iterdir()] == ["digits.html"]
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_full_disk_leaves_the_old_report(study: Study, tmp_path: Path) -> None:
    """A real limit on the size of files stands in for the disk: the write fails half-way."""
    path = tmp_path / "digits.html"
    path.write_text("the old one", encoding="utf-8")
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from autotune.results.report.html import write_report\n"
        "from tests.support.studies import make_study\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_report(make_study(trials=1), Path(sys.argv[1]))\n"
        "except OSError as error:\n"
        "    print(type(error).__name__, error.errno)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert found.stdout.startswith("OSError")
    assert [one.name for one in tmp_path.iterdir()] == ["digits.html"]
    assert path.read_text(encoding="utf-8") == "the old one"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_the_users_message(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda _: "full")
    (tmp_path / f".digits.html.{os.getpid()}-full").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no space left"):
        write_report(study, tmp_path / "digits.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_report_imports_no_torch() -> None:
    program = "import sys, autotune.results.report.html; sys.exit('torch' in sys.modules)"
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def report_page(browser: Browser, path: Path, **context: Any) -> tuple[Page, list[str], list[str]]:
    """Open a report and wait for its figures."""
    page, said, asked = open_page(browser, path.as_uri(), **context)
    until(page, "[...document.querySelectorAll('.plot')].every(one => one.querySelector('svg'))")
    return page, said, asked


def test_the_page_works_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    path = write_report(make_study(hostile=True, name=HOSTILE), tmp_path / "digits.html", URL)
    page, said, asked = report_page(browser, path, viewport={"width": 390, "height": 800})
    assert said == []
    assert asked == [path.as_uri()]
    assert page.locator(".plot").count() == 14
    drawn = "document.querySelectorAll('.plot .main-svg .trace path, .plot .points path').length"
    assert page.evaluate(drawn) > 100
    # Wide things scroll by themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth") == 390

    values = page.locator(".trials tbody td:nth-child(3)")
    button = page.locator(".trials th:nth-child(3) button")
    assert button.inner_text() == "accuracy"
    for order, sign in (("ascending", 1), ("descending", -1)):
        button.click()
        assert page.locator("th[aria-sort]").get_attribute("aria-sort") == order
        shown = [one for one in values.all_inner_texts() if one != "–"]
        numbers = [sign * float(one.split()[0]) for one in shown]
        assert numbers == sorted(numbers)
        assert values.all_inner_texts()[len(shown) :] == ["–"] * (values.count() - len(shown))
    assert said == []
    page.close()


def test_two_thousand_trials_can_be_looked_at(browser: Browser, tmp_path: Path) -> None:
    study = make_study(trials=2000, failed=40, retried=40, workers=8, budget=2000)
    start = time.process_time()
    path = write_report(study, tmp_path / "digits.html")
    assert time.process_time() - start < 20
    assert path.stat().st_size < 9e6
    page, said, _ = report_page(browser, path, viewport={"width": 1200, "height": 900})
    # The best and the newest ones: what is left out is said above the table.
    rows = page.locator(".trials tbody tr").count()
    assert rows == len(choose_rows(StudyResults.from_study(study))) < len(study.trials)
    assert f"{rows:,} of {len(study.trials):,} trials" in page.locator("main").inner_text()
    # The table scrolls by itself, below its head: what follows it is not thousands of rows away.
    assert page.evaluate("document.documentElement.scrollHeight") < 12_000
    page.locator(".trials th:nth-child(1) button").click()
    shown = page.locator(".trials tbody tr:first-child td:first-child").inner_text()
    assert shown == str(len(study.trials) - 1)
    assert said == []
    page.close()


def test_the_page_follows_the_colour_scheme(browser: Browser, tmp_path: Path) -> None:
    path = write_report(make_study(trials=6), tmp_path / "digits.html")
    page, said, _ = report_page(browser, path, color_scheme="light")
    colours = "[getComputedStyle(document.body).backgroundColor, getComputedStyle("
    colours += "document.querySelector('.xtick text')).fill]"
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    until(page, f"{colours}[1] !== {json.dumps(light[1])}")
    dark = page.evaluate(colours)
    assert _lightness(light[0]) > _lightness(light[1]) + 100
    assert _lightness(dark[0]) < _lightness(dark[1]) - 100
    assert said == []
    page.close()


def _lightness(colour: str) -> float:
    channels = [float(one) for one in re.findall(r"\d+", colour)[:3]]
    return sum(channels) / 3


@pytest.mark.slow
def test_a_page_has_its_figures_when_it_has_loaded(browser: Browser, tmp_path: Path) -> None:
    """Whatever prints it then, such as ``chromium --print-to-pdf``, prints them too."""
    path = write_report(make_study(trials=12), tmp_path / "report.html")
    page, said, _ = open_page(browser, path.as_uri())
    drawn = "[...document.querySelectorAll('.plot')].map(one => !!one.querySelector('.main-svg'))"
    assert set(page.evaluate(drawn)) == {True} and not said
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
    path = write_report(make_study(trials=12), tmp_path / "report.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert "The figures need JavaScript" in page.locator("body").inner_text()
    context.close()


def test_what_is_odd_about_the_images_is_on_the_page() -> None:
    study = make_study()
    assert not [one for one in Parsed(render_report(study, URL)).of("dt") if one == "duplicates"]
    found = {
        "mode": "report",
        **{"images": 500, "unreadable": 0, "small": 0, "exact": 2, "near": 4, "too_many": False},
        **{"test": 1, "validation": 0, "classes": 0},
        "examples": [["a/<1>.png", "train", "b/2.png", "test", "near"]],
    }
    study.set_user_attr(
        attrs.SURVEY, {"largest": ["a", 90], "smallest": ["<b>", 9], "duplicates": found}
    )
    page = Parsed(render_report(study, URL))
    notes = " ".join(page.of("li"))
    assert "'<b>' 9. See training.objective: balanced_accuracy" in notes
    assert "1 test image is like one of training or validation (a/<1>.png (train) and" in notes
    assert (
        "2 of 500 images are there more than once, 4 look alike; data.duplicates: report"
        in page.of("dd")
    )
