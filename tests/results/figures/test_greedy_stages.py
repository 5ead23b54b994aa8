"""The stages of a greedy search as a table."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import create_trial

from autotune.results.figures.greedy_stages import StageRow, stage_rows
from autotune.results.study_results import StudyResults
from autotune.search.greedy import STAGE
from autotune.search.space import Space
from autotune.study.state import attrs
from tests.support.pages.page import html_of
from tests.support.study.studies import make_study

SPACE = {
    "trainable_layers": {"low": 0, "high": 3},
    "training": {"weight_decay": {"low": 0, "high": 0.3}},
}


def greedy_study(**greedy: Any) -> Study:
    """A study of the layers alone, with its baseline at 84.2 %."""
    study = make_study(trials=1, running=0, failed=0, retried=0, space=SPACE, budget=13)
    definition = study.user_attrs[attrs.DEFINITION]
    definition["search"] |= {"strategy": "greedy", "default_plans": False, "greedy": greedy}
    study.set_user_attr(attrs.DEFINITION, definition)
    return study


def rows_of(study: Study) -> tuple[StageRow, ...]:
    return stage_rows(StudyResults.from_study(study))


def add(study: Study, stage: str, depth: int, value: float, decay: float | None = None) -> None:
    space = Space.from_json(study.user_attrs[attrs.SPACE])
    given = {"depth": depth} | ({} if decay is None else {"training.weight_decay": decay})
    values = {**space.nearest(space.baseline()), **given}
    study.add_trial(
        create_trial(
            value=value,
            params=space.canonical(values),
            distributions=dict(space.distributions),
            user_attrs={STAGE: stage, attrs.PLAN: space.plan(values).to_json()},
        )
    )


def test_a_study_in_another_order_has_no_stages() -> None:
    assert rows_of(make_study()) == rows_of(optuna.create_study()) == ()
    assert "Stage by stage" not in html_of(make_study())


def test_stages_say_what_was_tried_and_gained() -> None:
    study = greedy_study()
    add(study, "layer 1", 1, 0.9)
    add(study, "layer 2", 2, 0.85)
    add(study, "training", 1, 0.93, decay=0.01)
    gain = f"{100 * (0.9 - (study.trials[0].value or 0)):+.1f} points"
    skipped = "skipped: the layer before it gained nothing"
    missed = "not accepted: no gain"
    either = "trainable or not"
    assert rows_of(study) == (
        StageRow("layer 1", either, "1 of 3", "90.0 %", gain, "accepted", 1),
        StageRow("layer 2", either, "1 of 4", "85.0 %", "−5.0 points", missed, 2),
        StageRow("layer 3", either, "", "", "", skipped, None),
        StageRow("training", "weight decay", "1 of 10", "93.0 %", "+3.0 points", "in progress", 3),
    )
    page = html_of(study)
    assert "Stage by stage" in page and skipped in page


def test_a_layer_brings_its_learning_rate_where_that_is_searched() -> None:
    study = greedy_study()
    space = Space.from_json(study.user_attrs[attrs.SPACE])
    rate = FloatDistribution(1e-4, 0.3, log=True)
    fixed = {name: value for name, value in space.fixed.items() if name != "training.lr"}
    searched = {**space.distributions, "training.lr": rate}
    study.set_user_attr(attrs.SPACE, Space(space.backbone, fixed, searched).to_json())
    assert rows_of(study)[0].searched == "lr"


def test_a_stage_without_a_complete_trial_has_a_dash_and_the_margin_is_stated() -> None:
    study = greedy_study(margin=0.1)
    [row] = rows_of(study)
    assert (row.best, row.gain, row.verdict, row.trials) == ("–", "", "in progress", "0 of 3")
    add(study, "layer 1", 1, 0.9)
    assert rows_of(study)[0].verdict == "not accepted: no gain above 0.1"
