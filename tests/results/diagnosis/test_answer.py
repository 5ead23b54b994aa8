"""The answer of a study rests on the strongest evidence, and names what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.study import Study

from autotune.config.loading import load_study_file
from autotune.results.diagnosis.answer import find_answer
from autotune.results.diagnosis.next_steps import next_steps
from autotune.results.diagnosis.space_edges import space_edges, wider_range
from autotune.results.report.reproduction import study_file
from autotune.results.study_results import StudyResults
from autotune.results.values.verdict import Verdict
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from tests.support.pages.page import page_of
from tests.support.study.studies import make_results, make_study

URL = "sqlite:////data/a study.db"
ENDED = StopReason("trials", "24 finished trials").to_json()


def ended_study(**options: Any) -> Study:
    study = make_study(running=0, failed=0, retried=0, **options)
    study.set_user_attr(attrs.ENDED, ENDED)
    return study


def confirm(study: Study, low: float, trial: int = 1) -> None:
    verdict = Verdict(trial, 0.9, 0.85, 0.05, low, 0.09, 0.01, 5, (trial, 3))
    study.set_user_attr(attrs.CONFIRMED, verdict.to_json())


def refit(study: Study, low: float, high: float, trial: int = 3) -> None:
    read = {"trial": trial, "test": {"accuracy": 0.9}, "baseline": {"accuracy": 0.84}}
    gain = {"mean": 0.06, "low": low, "high": high}
    study.set_user_attr(attrs.TEST_READS, [{**read, "gain": gain}])


def verbs(study: Study) -> list[str]:
    """Return the verbs of the next commands, those of another study with its ending."""
    steps = next_steps(StudyResults.from_study(study), URL)
    lines = [shlex.split(step.command.splitlines()[-1]) for step in steps if step.command]
    return [line[line.index("--name") + 1] if "--name" in line else line[1] for line in lines]


def test_the_strongest_evidence_is_the_headline() -> None:
    study = ended_study()
    results = StudyResults.from_study(study)
    answer = find_answer(results)
    assert (answer.evidence, answer.trial) == ("search", results.best)
    assert "the best of 24 tries, so a part of the difference is luck" in answer.plain
    assert verbs(study)[0] == "confirm"

    confirm(study, 0.01)
    answer = find_answer(StudyResults.from_study(study))
    assert answer.evidence == "confirmed" and answer.trial is not None
    assert answer.trial.number == 1
    assert answer.text.startswith("over 5 seeds: baseline 85.0 % → 90.0 % (trial 1, +5.0 points")
    assert verbs(study)[0] == "refit"

    refit(study, 0.02, 0.1)
    answer = find_answer(StudyResults.from_study(study))
    assert answer.text.startswith(
        "test accuracy: baseline 84.0 % → 90.0 % (trial 3, +6.0 points, 95 % interval of the gain "
        "2.0 to 10.0): "
    )
    assert "On 360 images that were never used before" in answer.plain
    assert verbs(study)[0] == "export"
    page = page_of(study)
    # The plan that is drawn is the one that was refitted.
    assert any(text.startswith("Refitted: trial 3, ") for text in page.of("h3"))
    assert page.text.index("What next") < page.text.index("finished trials")


@pytest.mark.parametrize(
    ("low", "high", "trial", "text", "helps"),
    [
        (-0.01, 0.1, 3, "no gain is shown on the test split: baseline 84.0 %, trial 3 9", False),
        (-0.1, -0.01, 3, "worse than the baseline on the test split", False),
        (0.01, 0.1, 3, "test accuracy: baseline", True),
        (0.0, 0.0, 0, "the baseline has 84.0 % on the test split", False),
    ],
)
def test_what_the_test_split_says(
    low: float, high: float, trial: int, text: str, helps: bool
) -> None:
    study = ended_study()
    confirm(study, 0.01)
    refit(study, low, high, trial)
    answer = find_answer(StudyResults.from_study(study))
    assert answer.text.startswith(text) and answer.is_better is helps


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("accuracy", "about 84 of 100 images right"),
        ("balanced_accuracy", "about 84 of 100 images right, every class counting the same"),
        ("macro_f1", "a macro F1 of 83.6 % (more is better)"),
        ("log_loss", "a log loss of 0.4000 (less is better)"),
    ],
)
def test_plain_words_follow_the_metric(objective: str, words: str) -> None:
    assert words in find_answer(make_results(objective=objective)).plain


def test_where_nothing_helped_there_are_steps_with_commands() -> None:
    study = ended_study(gain=-0.05, trials=24)
    answer = find_answer(StudyResults.from_study(study))
    assert answer.is_better is False
    assert answer.plain.startswith("None of 23 other plans was better than the unchanged pre")
    steps = next_steps(StudyResults.from_study(study), URL)
    text = " ".join(step.text for step in steps)
    assert "Search beyond the " in text and "the best plan besides the baseline lies" in text
    assert "more trials" in text and "Try another backbone, mobilenetv3_large" in text
    assert verbs(study) == ["digits-wider", "run", "digits-mobilenetv3_large_100", "refit"]
    # Adding seeds until a plan wins would make false claims frequent.
    confirm(study, -0.01)
    assert "confirm" not in verbs(study)


@pytest.mark.parametrize(
    ("made", "first"),
    [
        ({"trials": 0, "running": 0, "failed": 0}, "run"),
        ({"trials": 4, "running": 1}, "status"),
        ({"trials": 4, "running": 0}, "run"),
    ],
    ids=str,
)
def test_a_study_that_is_not_at_its_end(made: dict[str, Any], first: str) -> None:
    assert verbs(make_study(**made))[0] == first


@pytest.mark.parametrize("name", ["digits", "-x", "a b", "it's"])
def test_commands_can_be_pasted(name: str, tmp_path: Path) -> None:
    study = ended_study(gain=-0.05, name=name)
    results = StudyResults.from_study(study)
    commands = [line for s in next_steps(results, URL) for line in s.command.splitlines()]
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "autotune" and words[words.index("--storage") + 1] == URL
        if words[1] != "run":
            assert words[-1] == name if name.startswith("-") else words[2] == name
            continue
        # What the report writes as a study file is valid with the changes of the command.
        path = tmp_path / words[2]
        path.write_text(study_file(results), encoding="utf-8")
        overrides = [word for word in words[3:] if "=" in word]
        config = load_study_file(str(path), overrides)
        assert (config.identity() == results.definition) == (
            all(word.startswith("search.trials") for word in overrides)
        )


@pytest.mark.parametrize("seed", range(4))
def test_a_wider_range_holds_the_old_one(seed: int) -> None:
    results = make_results(seed=seed)
    for trial in results.trials:
        for edge in space_edges(results, trial):
            wider = wider_range(results, edge, 5)
            assert (wider is not None) == edge.can_be_widened
            if wider is None:
                continue
            key, value = wider
            part: Any = results.definition
            for name in key.split("."):
                part = part[name]
            assert yaml.safe_load(yaml.safe_dump(value)) == value
            if isinstance(value, dict):
                assert value["low"] <= part["low"] and value["high"] >= part["high"]
                assert value != part
            else:
                assert set(part) < set(value)


def test_plans_still_queued_are_a_reason_for_more_trials() -> None:
    steps = next_steps(StudyResults.from_study(ended_study(trials=12, waiting=2)), URL)
    assert any("more trials, beginning with 2 queued plans (" in step.text for step in steps)
