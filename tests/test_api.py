"""The Python API: its examples and its errors."""

from __future__ import annotations

import doctest
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

import autotune
from autotune.api import plots, reader, seeds, study
from autotune.errors import ConfigError, StorageError, StudyError, UserError
from autotune.storage.rdb.connection import open_storage
from tests.support.commands.inline import workers_inline
from tests.support.commands.runs import environment, trials_of, wait_for
from tests.support.study.databases import connections_closed
from tests.support.study.studies import HOSTILE, make_study

pytestmark = pytest.mark.usefixtures("analyzed_once")
PAGE = Path(__file__).parents[1] / "docs/python.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOTUNE_STORAGE", raising=False)
    with connections_closed():
        yield


def run_examples(test: doctest.DocTest) -> dict[str, Any]:
    """Run examples; return the names that they leave."""
    output = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    with workers_inline():
        runner.run(test, out=output.write, clear_globs=False)
    assert not runner.failures, output.getvalue()
    return test.globs


@pytest.mark.slow
def test_every_example_is_true() -> None:
    """The page first, as it is read; its study is that of the docstrings."""
    text = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    page = doctest.DocTestParser().get_doctest(text, names, PAGE.name, str(PAGE), 0)
    assert len(page.examples) > 15
    names = {"study": run_examples(page)["study"], "autotune": autotune}
    finder = doctest.DocTestFinder()
    tests = [
        test
        for module in (reader, plots, study, seeds)
        for test in finder.find(module, globs={}, extraglobs=names)
    ]
    documented = [test for test in tests if test.examples]
    assert len(documented) > 12
    for test in documented:
        run_examples(test)


def made(name: str = "made", **how: Any) -> autotune.Study:
    """Make a study as a run leaves it behind, and open it."""
    storage = open_storage("sqlite:///storage/autotune.db", create=True)
    make_study(name, storage=storage, **{"trials": 9, **how})
    return autotune.Study.open(name)


def test_reading_a_file_writes_nothing(tmp_path: Path) -> None:
    study = autotune.Study.from_file("digits", {"search.sampler": "tpe"}, storage="sqlite:///a.db")
    assert repr(study) == "<Study digits-tpe: not run yet>"
    assert study._repr_html_() == "<p>Study <b>digits-tpe</b>: not run yet</p>"
    assert (study.best, study.baseline, study.interrupted) == (None, None, False)
    assert study.storage == f"sqlite:///{tmp_path}/a.db"
    for ask in (study.trials_dataframe, study.report, study.plot_history, study.refit):
        with pytest.raises(StudyError, match=r"'digits-tpe' has not been run yet; run\(\) makes"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_the_storage_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_STORAGE", "postgresql://me:secret@localhost:1/db")
    study = autotune.Study.from_file("digits")
    assert study.storage == "postgresql+psycopg://me:***@localhost:1/db"
    assert repr(study).startswith("<Study digits: cannot be read: storage")
    assert "secret" not in repr(study) + study._repr_html_()
    assert autotune.Study.from_file("digits", storage="sqlite:///a.db").storage.endswith("/a.db")


def test_a_study_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(name="digits")
    study = autotune.Study.from_file("digits")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert study.best is not None and study.best.number == 9


def test_a_study_that_runs() -> None:
    study = made(running=2)
    assert repr(study) == (
        "<Study made: 10 of 40 trials finished, 2 running, best 90.0 % (trial 9), baseline 84.2 %>"
    )
    assert study.best is not None and study.baseline is not None
    assert (study.best.number, study.baseline.number) == (9, 0)
    assert study.best.cost is None and study.best.params["depth"] == study.best.plan.depth
    assert study.baseline.params == {}


def test_two_objectives() -> None:
    study = made(objectives=("accuracy", "latency_ms"))
    assert study.best is not None and study.best.cost is not None and study.best.cost > 0
    assert " ms (trial " in repr(study)
    assert study.plot_front().layout.xaxis.title.text == "latency (ms)"


def test_a_notebook_is_shown_no_tags_of_others() -> None:
    html = made(name=HOSTILE, hostile=True)._repr_html_()
    assert "<script>" not in html and "<b>&amp;" not in html
    assert html.count("<table>") == 1


def test_what_cannot_be_drawn_says_why() -> None:
    study = made(trials=0, running=1, failed=0, retried=0)
    for draw, message in (
        (study.plot_history, "no trial is complete yet"),
        (study.plot_timeline, "no trial has ended yet"),
        (study.plot_importances, "need complete trials that differ"),
        (study.plot_front, "has one objective, and no front; a study file with 'objectives"),
    ):
        with pytest.raises(StudyError, match=message):
            draw()
    with pytest.raises(StudyError, match=r"'training\.rl'; did you mean 'training\.lr'"):
        study.plot_slice("training.rl")
    with pytest.raises(StudyError, match="fewer than two complete trials in which depth has"):
        study.plot_slice("depth")
    assert study.plot_curves().data


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 mistakes"):
        autotune.Study.from_file("digits", {"search.trails": 3, "training.epochs": "few"})
    for given in ("digitz", Path("digitz")):
        with pytest.raises(StudyError, match="did you mean 'digits'"):
            autotune.Study.from_file(given)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="there is no database"):
        autotune.Study.open("digits")
    study = made()
    with pytest.raises(StudyError, match="has no study 'mode'; it has made; did you mean 'made'"):
        autotune.Study.open("mode")
    for call, message in (
        (lambda: study.run(gpus=0), "gpus: must be text such as '0,2'"),  # type: ignore[arg-type]
        (lambda: study.refit("fastest"), "a trial, or 'cheapest', but got 'fastest'"),  # type: ignore[arg-type]
        (lambda: study.enqueue(trial="last"), "a trial, or 'best', but got 'last'"),  # type: ignore[arg-type]
        (lambda: study.confirm(seeds=1), "seeds: must be at least 2, but got 1"),
        (lambda: study.confirm(top=0), "top: must be at least 1, but got 0"),
        (lambda: study.report("a.txt"), "a.txt: the ending of a report"),
        (lambda: study.report("missing/a.md"), "missing must exist and be writable"),
        (lambda: study.report(tmp_path), "but it is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            call()


SCRIPT = """
import autotune
study = autotune.Study.from_file("digits", {"training.epochs": 30, "search.trials": 60})
study.run(workers=2)
print("after:", study.interrupted, study.trials_dataframe()["state"].eq("running").sum())
"""


@pytest.mark.slow
def test_an_interrupt_queues_what_runs(tmp_path: Path) -> None:
    """In a script without a main guard, as a notebook has none."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with (tmp_path / "out.txt").open("w") as out:
        started = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    wait_for(
        lambda: any(trial.state == TrialState.RUNNING for trial in trials_of(tmp_path, "digits"))
    )
    started.send_signal(signal.SIGINT)
    assert started.wait(60) == 0
    output = (tmp_path / "out.txt").read_text()
    assert output.endswith(
        "Stopped. The running trials are queued; run() continues them.\nafter: True 0\n"
    )
    assert any(trial.state == TrialState.WAITING for trial in trials_of(tmp_path, "digits"))
