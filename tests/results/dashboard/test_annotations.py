"""What optuna-dashboard answers, with what is ours filled in."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState, create_trial
from optuna_dashboard import save_note, wsgi

from autotune.results.dashboard import annotations as annotated_module
from autotune.results.dashboard.annotations import annotated_app
from autotune.results.figures.parameters import importances
from autotune.results.study_results import StudyResults
from autotune.storage.admin.copy_study import copy_studies
from autotune.storage.rdb.connection import open_storage
from autotune.study.state import attrs
from tests.support.study.databases import connections_closed
from tests.support.study.studies import make_study

IMPORTANCES = "/api/studies/0/param_importances"


class Dashboard:
    """optuna-dashboard on a storage, plain or as we serve it."""

    def __init__(self, study: Study, folder: Path, plain: bool = False) -> None:
        storage = study._storage
        artifacts = FileSystemArtifactStore(str(folder))
        if plain:
            self.app = wsgi(storage, artifact_store=artifacts)
        else:
            self.app = annotated_app(storage, artifacts, "sqlite:///study.db")

    def ask(self, path: str, query: str = "after=0") -> tuple[str, dict[str, str], bytes]:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ |= {"PATH_INFO": path, "QUERY_STRING": query}
        begun: list[Any] = []
        answer = self.app(environ, lambda *told: begun.append(told))
        body = b"".join(answer)
        getattr(answer, "close", lambda: None)()
        return begun[-1][0], dict(begun[-1][1]), body

    def study(self, number: int = 1, query: str = "after=0") -> dict[str, Any]:
        status, headers, body = self.ask(f"/api/studies/{number}", query)
        assert (status, headers["Content-Length"]) == ("200 OK", str(len(body)))
        return dict(json.loads(body))


@pytest.fixture
def study(tmp_path: Path) -> Any:
    with connections_closed():
        yield make_study(trials=4, storage=f"sqlite:///{tmp_path}/study.db")


def test_notes_and_attributes_are_filled_in_and_the_rest_stays(
    study: Study, tmp_path: Path
) -> None:
    plain = Dashboard(study, tmp_path, plain=True).study()
    ours = Dashboard(study, tmp_path).study()
    assert ours["note"]["body"].startswith("**no trial is better than ")
    assert all("```text" in one["note"]["body"] for one in ours["trials"])
    numbers = {one["key"]: one["sortable"] for one in ours["union_user_attrs"]}
    assert (numbers["accuracy"], numbers["worker"]) == (True, False)
    for one in ours["trials"]:
        assert {each["key"] for each in one["user_attrs"]} <= set(numbers)
    own = ("note", "user_attrs", "union_user_attrs")
    for some in (plain, ours, *plain["trials"], *ours["trials"]):
        for key in own:
            some.pop(key, None)
    for best in (plain["best_trials"], ours["best_trials"]):
        assert [one.pop("number") for one in best] == [study.best_trial.number]
    del plain["best_trials"], ours["best_trials"]
    assert ours == plain


def test_the_best_trial_is_that_of_the_other_pages(tmp_path: Path) -> None:
    limits = {"constraints": {"max_latency_ms": 0.01}}
    for study in (make_study(gain=-0.05), make_study(**limits), make_study(trials=0)):
        for log_loss in (0.2, 0.1):  # the last one has the lowest log loss
            known = {attrs.METRICS: {"log_loss": log_loss}}
            study.add_trial(create_trial(value=0.99, user_attrs=known))
        shown = Dashboard(study, tmp_path).study(study._study_id)
        best = StudyResults.from_study(study).best
        assert best is not None and best.number == len(study.trials) - 1
        assert [one["number"] for one in shown["best_trials"]] == [best.number]
    beyond = make_study(trials=0)
    beyond.add_trial(create_trial(value=0.9, constraints={"max_parameters": 1.0}))
    assert Dashboard(beyond, tmp_path).study(beyond._study_id)["best_trials"] == []


def test_what_somebody_has_written_is_shown_and_goes_along(study: Study, tmp_path: Path) -> None:
    old, new = (f"sqlite:///{tmp_path}/{name}.db" for name in ("study", "new"))
    storage = open_storage(new, create=True)
    optuna.create_study(storage=storage, study_name="other").add_trial(create_trial(value=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_note(study, "look at trial 3")
        save_note(Trial(study, study.trials[3]._trial_id), "odd")
    study._storage.set_study_system_attr(study._study_id, "dashboard:99:note_ver", 1)  # nobody's
    copy_studies(old, new)
    copy = optuna.load_study(storage=storage, study_name=study.study_name)
    assert copy.trials[3]._trial_id != study.trials[3]._trial_id
    shown = Dashboard(copy, tmp_path).study(copy._study_id)
    assert shown["note"] == {"version": 1, "body": "look at trial 3"}
    bodies = [one["note"]["body"] for one in shown["trials"]]
    assert [number for number, body in enumerate(bodies) if "```text" not in body] == [3]
    assert shown["trials"][3]["note"] == {"version": 1, "body": "odd"}
    kept = storage.get_study_system_attrs(copy._study_id)
    assert len([key for key in kept if key.startswith("dashboard:")]) == 4
    save_note(copy, "")
    note = Dashboard(copy, tmp_path).study(copy._study_id)["note"]
    assert note["version"] == 2 and note["body"].startswith("**no trial is better than ")


def test_a_trial_that_ends_meanwhile_has_a_new_note(study: Study, tmp_path: Path) -> None:
    board = Dashboard(study, tmp_path)
    running = next(one for one in study.trials if one.state == TrialState.RUNNING)
    (before,) = board.study(query=f"after={running.number}")["trials"]
    assert before["note"]["body"].startswith("**running**")
    study._storage.set_trial_user_attr(running._trial_id, attrs.REASON, "lost")
    study.tell(running.number, state=TrialState.FAIL)
    (after,) = Dashboard(study, tmp_path).study(query=f"after={running.number}")["trials"]
    assert after["note"]["body"].startswith("**failed: lost**")


def test_other_studies_and_pages_are_as_they_were(study: Study, tmp_path: Path) -> None:
    other = optuna.create_study(storage=study._storage, study_name="other")
    other.enqueue_trial({"x": 1})
    plain, ours = Dashboard(study, tmp_path, plain=True), Dashboard(study, tmp_path)
    for path in ("/api/studies/2", "/api/studies/99", "/api/studies", "/dashboard"):
        assert ours.ask(path)[0] == plain.ask(path)[0]
        assert ours.ask(path)[2] == plain.ask(path)[2]
    assert ours.ask("/api/studies/1", "after=-1")[0].startswith("400")


def test_search_spaces_are_those_of_the_dashboard(tmp_path: Path) -> None:
    """Of trials with other distributions too, and however often one asks."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="any")
    for high in (3, 3, 5, 4):
        pools = CategoricalDistribution(["avg", "max"] if high < 5 else ["avg", "all"])
        found: dict[str, BaseDistribution] = {"depth": IntDistribution(0, high), "pool": pools}
        if high == 4:
            found["rate"] = FloatDistribution(0.1, 0.5)
        params = {"depth": 2, "pool": "avg", "rate": 0.2}
        drawn = {name: params[name] for name in found}
        study.add_trial(create_trial(value=0.5, params=drawn, distributions=found))
    study.add_trial(create_trial(state=TrialState.FAIL))
    boards = [Dashboard(study, tmp_path, plain=True), Dashboard(study, tmp_path)]
    for _ in range(2):
        plain, ours = (sorted_choices(one.study(study._study_id)) for one in boards)
        assert ours == plain
        running = study.ask({"late": IntDistribution(0, 9)})
        running.set_user_attr("late", "x")
        for board in boards:
            board.app._inmemory_cache._trials_cache.clear()  # else it asks every 2 s


def sorted_choices(shown: dict[str, Any]) -> dict[str, Any]:
    """Bring into order what the dashboard has in the order of a set."""
    for key in ("intersection_search_space", "union_search_space"):
        for one in shown[key]:
            one["distribution"].get("choices", []).sort(key=str)
    shown["union_user_attrs"].sort(key=str)
    return shown


def test_a_trial_that_has_ended_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    base = annotated_module._CachedExtraStudyProperty
    monkeypatch.setattr(
        base, "_update_user_attrs", lambda self, trial: looked.append(trial.number)
    )
    study = make_study(trials=6, running=1)
    spaces = annotated_module._SearchSpaces()
    trials = study.get_trials(deepcopy=False)
    spaces.update(trials)
    assert sorted(looked) == [one.number for one in trials]
    looked.clear()
    spaces.update(trials)
    assert sorted(looked) == [one.number for one in trials if not one.state.is_finished()]


@pytest.mark.parametrize("of", ["study", "trial"])
def test_a_study_of_a_later_version_is_shown_without_our_notes(of: str, tmp_path: Path) -> None:
    study = make_study("made", trials=4)
    if of == "study":
        study.set_user_attr(attrs.FORMAT, {"format": 99, "autotune": "9.9"})
    else:
        plan = study.trials[0].user_attrs[attrs.PLAN]
        study.enqueue_trial({}, user_attrs={attrs.PLAN: {**plan, "attention": 3}})
    shown = Dashboard(study, tmp_path).study(study._study_id)
    assert len(shown["trials"]) == len(study.trials)
    assert "was written by" in shown["note"]["body"] and "cannot be read" in shown["note"]["body"]


def test_names_from_outside_act_on_no_page(tmp_path: Path) -> None:
    study = make_study("made", trials=4)
    dataset = study.user_attrs[attrs.DATASET]
    study.set_user_attr(attrs.DATASET, {**dataset, "classes": ["a\u202eb", "<b>\nc\x1b[2J"]})
    study.set_user_attr("told\u202e", "x\u2066\ny")
    shown = Dashboard(study, tmp_path).study(study._study_id)
    said = json.dumps([shown["note"], shown["user_attrs"]], ensure_ascii=False)
    assert not set("\u202e\u2066\x1b") & set(said) and "u001b" not in said
    assert "<b>" not in said.replace("\\\\<b\\\\>", "") and "\\\\u202e" in said


@pytest.mark.filterwarnings("ignore::UserWarning")  # optuna-dashboard's, of few trials
@pytest.mark.parametrize("objectives", [None, ["accuracy", "latency_ms"]])
def test_importances_are_those_of_the_report(objectives: list[str] | None, tmp_path: Path) -> None:
    study = make_study(trials=12, objectives=objectives)
    plain = json.loads(Dashboard(study, tmp_path, plain=True).ask(IMPORTANCES)[2])
    ours = json.loads(Dashboard(study, tmp_path).ask(IMPORTANCES)[2])
    shown = {entry["name"]: entry["importance"] for entry in ours["param_importances"][0]}
    assert shown == pytest.approx(importances(StudyResults.from_study(study)))
    assert ours["param_importances"][1:] == plain["param_importances"][1:]
    assert Dashboard(study, tmp_path).ask(IMPORTANCES.replace("0", "999"))[0].startswith("404")
