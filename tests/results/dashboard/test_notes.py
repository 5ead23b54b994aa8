"""The notes of studies and trials."""

from __future__ import annotations

import re

import pytest
from optuna.study import Study
from optuna.trial import TrialState

from autotune.results.dashboard.notes import study_note, trial_note
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from tests.support.study.studies import make_study

URL = "postgresql://me:secret@db.example.org/studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(waiting=1)


def note_of(study: Study, url: str = "") -> str:
    return study_note(StudyResults.from_study(study), url)


def notes_of(study: Study) -> dict[TrialState, list[str]]:
    found: dict[TrialState, list[str]] = {}
    results = StudyResults.from_study(study)
    for trial in results.trials:
        found.setdefault(trial.state, []).append(trial_note(trial, results))
    return found


def test_the_note_of_a_study_has_its_answer_and_says_how_to_run_it(study: Study) -> None:
    note = note_of(study, URL)
    first, _, counts, *_ = note.split("\n\n")
    assert re.fullmatch(r"\*\*baseline 84.2 % → best .* points\): .*\*\*", first), first
    finished = "trials: 25 of 40 finished: 17 complete, 7 pruned, 1 failed, 1 retried, 1 running"
    assert counts.startswith(finished)
    assert "| backbone | test_resnet.r160_in1k: 5 layers, 18.0 k parameters |" in note
    assert "| objective | accuracy on the validation split, the more the better |" in note
    assert "| baseline | trial 0, 84.2 %: backbone frozen, linear head, " in note
    assert "| images | 200 train, 360 validate, 360 are the test split |" in note
    assert "| fingerprint | 0f0f0f0f" in note
    assert "autotune status digits --watch --storage 'postgresql://me:***@db.example.org" in note
    assert "dataset: digits" in note
    assert "secret" not in note


def test_the_note_of_a_study_that_is_over_or_has_nothing() -> None:
    study = make_study(trials=0, running=0, failed=0, retried=0)
    assert note_of(study).startswith("**nothing has run yet**\n\nThere is no result yet")
    reason = StopReason("patience", "no better one in 20 trials")
    study.set_user_attr(attrs.ENDED, reason.to_json())
    assert "The study has ended: no better one in 20 trials." in note_of(study)


def test_two_objectives_limits_and_folds_are_named() -> None:
    study = make_study(
        objectives=["accuracy", "latency_ms"], constraints={"max_parameters": 50_000.0}
    )
    dataset = {**study.user_attrs[attrs.DATASET], "train": 360, "folds": [240, 240, 240]}
    study.set_user_attr(attrs.DATASET, dataset)
    note = note_of(study)
    assert "| objective | latency of the network, the less the better |" in note
    assert "| limits | parameters at most 50.0 k |" in note
    assert "360 take turns in 3 folds" in note


def test_every_trial_has_a_note_with_its_plan_and_picture(study: Study) -> None:
    notes = notes_of(study)
    assert set(notes) == set(TrialState)
    for note in (one for state, some in notes.items() for one in some if state.value != 4):
        assert "■ head" in note
        assert note.count("```") == 2
        assert len(note.encode()) < 1500
    assert notes[TrialState.COMPLETE][0].startswith("**the baseline, 84.2 %**\n\nbackbone frozen")
    assert all("against the baseline**" in one for one in notes[TrialState.COMPLETE][1:])
    assert all(re.match(r"\*\*pruned after epoch \d", one) for one in notes[TrialState.PRUNED])
    assert {one.split("\n")[0] for one in notes[TrialState.FAIL]} == {
        "**failed: DivergedError: the loss is nan in epoch 2**",
        "**failed: the worker was lost: no heartbeat for 120 s**",
    }
    assert notes[TrialState.RUNNING][0].startswith("**running**")
    assert notes[TrialState.WAITING] == ["**waiting**"]
    assert sum("continues trial 2" in one for one in notes[TrialState.COMPLETE]) == 1


def test_an_infeasible_trial_says_by_how_much() -> None:
    study = make_study(constraints={"max_parameters": 40_000.0})
    results = StudyResults.from_study(study)
    infeasible = filter(attrs.ended_infeasible, results.trials)
    notes = [trial_note(trial, results) for trial in infeasible]
    assert notes
    assert all(note.startswith("**infeasible: ") and "at most 40.0 k" in note for note in notes)


def test_what_others_wrote_is_shown_as_it_is() -> None:
    study = make_study(hostile=True)
    definition = {**study.user_attrs[attrs.DEFINITION], "dataset": "```"}
    study.set_user_attr(attrs.DEFINITION, definition)
    attributes = study.user_attrs[attrs.DATASET]
    study.set_user_attr(attrs.DATASET, {**attributes, "classes": ["a|b", "**c**", "[d](e)", "$"]})
    note = note_of(study)
    assert r"4: a\|b, \*\*c\*\*, \[d\](e), \$ |" in note
    assert "````yaml\nname: digits\n" in note  # a fence is longer than those in what it holds
    for notes in notes_of(study).values():
        for one in notes:
            outside = re.sub(r"```.*?```", "", one, flags=re.DOTALL)
            assert "<" not in outside.replace("\\<", "")
