from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.config.schema import StudyConfig
from autotune.results.figures.greedy_stages import StageRow, stage_rows
from autotune.results.report.html import render_report
from autotune.search.greedy import STAGE
from autotune.search.space import Space
from autotune.study.state import attrs
from tests.support.studies import make_study

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
    assert StudyConfig.model_validate(definition).search.strategy == "greedy"
    return study


def add(study: Study, stage: str, depth: int, value: float, decay: float | None = None) -> None:
    space = Space.from_json(study.user_attrs[attrs.SPACE])
    start = space.nearest(space.baseline())
    given = {"depth": depth} | ({} if decay is None else {"training.weight_decay": decay})
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=value,
            params=space.canonical({**start, **given}),
            distributions=dict(space.distributions),
            user_attrs={STAGE: stage, attrs.PLAN: space.plan({**start, **given}).to_json()},
        )
    )


def test_a_study_in_another_order_has_no_stages() -> None:
    assert stage_rows(make_study()) == ()
    assert "Stage by stage" not in render_report(make_study())
    assert stage_rows(optuna.create_study()) == ()


def test_stages_say_what_was_tried_and_gained() -> None:
    study = greedy_study()
    add(study, "layer 1", 1, 0.9)
    add(study, "layer 2", 2, 0.85)
    add(study, "training", 1, 0.93, decay=0.01)
    baseline = study.trials[0].value
    assert baseline is not None
    gain = f"{100 * (0.9 - baseline):+.1f} points"
    assert stage_rows(study) == (
        StageRow("layer 1", "trainable or not", "1 of 3", "90.0 %", gain, "accepted", 1),
        StageRow(
            "layer 2",
            "trainable or not",
            "1 of 4",
            "85.0 %",
            "−5.0 points",
            "not accepted: no gain",
            2,
        ),
        StageRow(
            "layer 3",
            "trainable or not",
            "",
            "",
            "",
            "left out: the layer before it gained nothing",
            None,
        ),
        StageRow("training", "weight decay", "1 of 10", "93.0 %", "+3.0 points", "in progress", 3),
    )
    page = render_report(study)
    assert "Stage by stage" in page
    assert "left out: the layer before it gained nothing" in page


@pytest.mark.parametrize("margin", [0.1])
def test_the_margin_is_stated(margin: float) -> None:
    study = greedy_study(margin=margin)
    add(study, "layer 1", 1, 0.9)
    assert stage_rows(study)[0].verdict == "not accepted: no gain above 0.1"


def test_a_layer_brings_its_learning_rate_where_that_is_searched() -> None:
    study = greedy_study()
    space = Space.from_json(study.user_attrs[attrs.SPACE])
    rate = FloatDistribution(1e-4, 0.3, log=True)
    fixed = {name: value for name, value in space.fixed.items() if name != "training.lr"}
    searched = {**space.distributions, "training.lr": rate}
    study.set_user_attr(attrs.SPACE, Space(space.backbone, fixed, searched).to_json())
    assert stage_rows(study)[0].searched == "lr"


def test_a_stage_without_a_complete_trial_has_a_dash() -> None:
    study = greedy_study()
    [row] = stage_rows(study)
    assert (row.best, row.gain, row.verdict, row.trials) == ("–", "", "in progress", "0 of 3")
