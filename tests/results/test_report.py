"""The report: the page a study leaves behind, rendered and read back."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import yaml
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.config import StudyConfig
from autotune.errors import DiskFullError
from autotune.results import report
from autotune.results.report import headline, in_time, render_report, study_file, write_report
from autotune.study import record
from tests.support.studies import HOSTILE, ONE_PARAMETER, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

URL = "postgresql://me:secret@db.example.org/studies"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Parsed(HTMLParser):
    """What a browser would make of a page: texts by tag, tags, attributes, rows of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style") and data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    @property
    def text(self) -> str:
        return " ".join(text for _, text in self.texts)

    def of(self, tag: str) -> list[str]:
        return [text for parent, text in self.texts if parent == tag]

    def having(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and wanted.items() <= attributes.items()
        ]


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


@pytest.fixture(scope="module")
def page(study: Study) -> Parsed:
    return Parsed(render_report(study, URL))


# The answer


def test_headline(study: Study) -> None:
    best = record.best_of(study.trials, study.direction)
    assert best is not None
    plan = record.plan_of(best)
    assert plan is not None
    assert headline(study) == (
        f"baseline 84.2 % → best 91.7 % (trial {best.number}, +7.5 points): {plan.in_words()}"
    )


def test_headline_of_a_minimised_objective() -> None:
    study = make_study(objective="log_loss")
    best = min(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda one: one.value or 0.0)
    assert headline(study).startswith(
        f"baseline 0.4000 → best 0.2200 (trial {best.number}, 0.1800 lower): last "
    )


def test_headline_when_nothing_beats_the_baseline() -> None:
    study = make_study(gain=-0.05, space=ONE_PARAMETER)
    said = headline(study)
    assert said.startswith("no trial is better than the baseline: 84.2 %")
    assert "→" not in said


def test_headline_names_the_distance_of_the_nearest_trial() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.add_trial(create_trial(value=0.80))
    assert headline(study) == (
        "no trial is better than the baseline: 84.2 %; the nearest is trial 1 with 80.0 % "
        "(−4.2 points)"
    )


def test_headline_before_there_is_much_to_say() -> None:
    assert headline(make_study(trials=0, running=0, failed=0)) == "nothing has run yet"
    assert headline(make_study(trials=0, running=2, failed=1)) == (
        "no trial is complete yet (2 running, 1 failed)"
    )
    assert headline(make_study(trials=1, running=0, failed=0)) == (
        "only the baseline is complete: 84.2 %"
    )


def test_headline_without_a_baseline() -> None:
    study = make_study(trials=0, running=0, failed=0)
    study.add_trial(create_trial(value=0.9))
    assert headline(study) == "best 90.0 % (trial 0); the baseline is not complete yet"


def test_facts(study: Study, page: Parsed) -> None:
    progress = record.progress_of(study.trials, 40)
    assert f"{progress.finished} of 40" in page.of("b")
    counts = f"{progress.complete} complete, {progress.pruned} pruned, 1 failed, 1 retried"
    assert f"{counts}, 1 running" in page.text
    ended = [record.seconds_of(one) for one in study.trials]
    assert f"{sum(one for one in ended if one):,.0f} s on 2 workers (NVIDIA H200)" in page.text


def test_epochs_of_a_retried_attempt_count_once() -> None:
    study = make_study(trials=2, running=0, failed=0, retried=1)
    assert [one.user_attrs[record.EPOCHS] for one in study.trials[:2]] == [10, 2]
    # The attempt's two epochs are among those of its successor.
    expected = 10 + study.trials[2].user_attrs[record.EPOCHS]
    assert str(expected) in Parsed(render_report(study)).of("b")


def test_epochs_saved_by_pruning(study: Study, page: Parsed) -> None:
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    saved = sum(10 - one.user_attrs[record.EPOCHS] for one in pruned)
    assert f"{saved} more saved by pruning" in page.text


def test_the_page_warns_of_optimism(page: Parsed) -> None:
    assert "autotune fit measures the test part" in page.text
    assert "On 360 validation images, one standard error of 91.7 % is 1.5 points." in page.text


def test_the_page_says_when_a_gain_may_be_chance() -> None:
    study = make_study(trials=1, running=0, failed=0)
    study.add_trial(create_trial(value=0.85))
    text = Parsed(render_report(study)).text
    assert "is less than two of them, so it may be chance" in text


def test_notes() -> None:
    late = make_study(trials=12, running=0, failed=6)
    late.add_trial(create_trial(value=0.99))
    text = Parsed(render_report(late)).text
    assert "of the finished trials failed" in text
    assert "The best trial came late (0 trials after it)" in text
    assert "of 40 trials are missing" in text


# The evidence


def test_the_pictures_show_baseline_and_best(page: Parsed) -> None:
    assert [text.split(",")[0] for text in page.of("h3") if "accuracy" in text] == [
        "Baseline",
        "Best: trial 7",
    ]
    assert len(page.having("ol", **{"class": "network"})) == 2


def test_edges_of_the_space_are_named(page: Parsed) -> None:
    assert "head.units.1 = 512" in page.of("b")
    assert "The best plan lies at the edge of the space: head.hidden_layers = 2" in page.text


def test_every_figure_is_json_of_its_own() -> None:
    rendered = render_report(make_study(hostile=True))
    sources = re.findall(
        r'<script type="application/json" class="figure">(.*?)</script>', rendered
    )
    assert len(sources) == 4 + 10
    assert all({"data", "layout"} <= set(json.loads(source)) for source in sources)


def test_the_table_has_every_trial(study: Study, page: Parsed) -> None:
    start = page.tags.index(("table", {"class": "trials"}))
    rows = [attributes for tag, attributes in page.tags[start:] if tag == "tr"]
    marked = [attributes["class"] for attributes in rows if "class" in attributes]
    assert marked == ["baseline", "best"]
    for one in study.trials:
        assert str(one.number) in page.of("td")
    assert "the worker was lost: no heartbeat for 120 s" in page.of("td")
    assert "retry of 2" in page.of("td")
    assert {"84.2 %", "83.8 %", "0.4000"} <= set(page.of("td"))


def test_failures_are_grouped_by_reason() -> None:
    text = Parsed(render_report(make_study(failed=3))).text
    assert "3 failed DivergedError: the loss is nan in epoch 2" in text
    assert "1 retried the worker was lost" in text


# How to do it again


def test_the_study_file_defines_the_same_study(study: Study) -> None:
    config = StudyConfig.model_validate(yaml.safe_load(study_file(study, "sqlite:///a.db")))
    assert config.definition() == study.user_attrs[record.DEFINITION]
    assert (config.name, config.search.trials, config.storage) == ("digits", 40, "sqlite:///a.db")


def test_commands(page: Parsed) -> None:
    commands = page.of("pre")[-1]
    redacted = "'postgresql://me:***@db.example.org/studies'"
    assert f"autotune best digits --storage {redacted}" in commands
    assert f"autotune run digits.yaml --name digits-again --storage {redacted}" in commands


def test_commands_copy_a_preset_that_still_says_the_same(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "digits.yaml"
    shipped.write_text(study_file(study), encoding="utf-8")
    monkeypatch.setattr("autotune.studyfile.presets_folder", lambda: tmp_path)
    assert "autotune cp digits digits.yaml" in render_report(study)
    shipped.write_text(study_file(study).replace("epochs: 10", "epochs: 11"), encoding="utf-8")
    assert "autotune cp" not in render_report(study)
    shipped.write_text("dataset: [", encoding="utf-8")
    assert "autotune cp" not in render_report(study)


def test_no_password_on_the_page(study: Study) -> None:
    assert "secret" not in render_report(study, URL)


# The file


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
        {"hostile": True, "name": HOSTILE},
    ],
    ids=str,
)
def test_every_kind_of_study_gives_a_well_formed_page(made: dict[str, Any]) -> None:
    parsed = Parsed(render_report(make_study(**made), URL))
    assert not parsed.open
    assert len(parsed.having("h1")) == 1
    # Two scripts of ours, the rest are data; nothing a name brought in.
    assert len([one for one in parsed.having("script") if "type" not in one]) == 2
    for _, attributes in parsed.tags:
        assert not attributes.get("src")
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "data:").startswith("data:")


def test_a_study_that_remembers_nothing_is_reported() -> None:
    parsed = Parsed(render_report(optuna.create_study()))
    assert "Nothing has run yet" in parsed.text


def test_plotly_is_there_once(study: Study) -> None:
    rendered = render_report(study)
    assert rendered.count("plotly.js v") == 1
    assert rendered.index("plotly.js v") > rendered.index("</table>")


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
        "from autotune.results.report import write_report\n"
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
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert found.stdout.startswith("OSError")
    assert [one.name for one in tmp_path.iterdir()] == ["digits.html"]
    assert path.read_text(encoding="utf-8") == "the old one"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_the_users_message(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.secrets, "token_hex", lambda _: "full")
    (tmp_path / f".digits.html.{os.getpid()}-full").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no space left"):
        write_report(study, tmp_path / "digits.html")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_report_imports_no_torch() -> None:
    program = "import sys, autotune.results.report; sys.exit('torch' in sys.modules)"
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (4980, "1 h 23 min"),
        (3 * 86400 + 7300, "3 d 2 h"),
    ],
)
def test_in_time(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    if not Path(executable).exists():
        message = f"no Chromium at {executable}; set CHROMIUM to the executable"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Without its sandbox Chromium also runs as root, as in a container; the page is ours.
        started = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Browser, path: Path, **context: Any) -> tuple[Page, list[str], list[str]]:
    """Open a page; return it, what it said to the console, and what it asked for."""
    page = browser.new_page(**context)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    until(page, "[...document.querySelectorAll('.plot')].every(one => one.querySelector('svg'))")
    return page, said, asked


def until(page: Page, condition: str) -> None:
    """Wait for a condition; playwright's own way is an ``eval``, which the page forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came true: {condition}")


def test_the_page_works_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    path = write_report(make_study(hostile=True, name=HOSTILE), tmp_path / "digits.html", URL)
    page, said, asked = opened(browser, path, viewport={"width": 390, "height": 800})
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


def test_the_page_follows_the_colour_scheme(browser: Browser, tmp_path: Path) -> None:
    path = write_report(make_study(trials=6), tmp_path / "digits.html")
    page, said, _ = opened(browser, path, color_scheme="light")
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
