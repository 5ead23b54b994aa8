"""What ``autotune refit`` prints of a combination."""

from __future__ import annotations

import io
from typing import get_args

import pytest
import torch
from optuna.study import StudyDirection
from rich.console import Console

from autotune.cli.results.refit import Combine, print_combination
from autotune.plan import TrialPlan
from autotune.results.evaluation.bootstrap import compare
from autotune.results.evaluation.combination import (
    COMBINATIONS,
    ENSEMBLE,
    Combination,
    Member,
    ModelScores,
)
from autotune.results.values.objective import Objective


def test_the_choices_are_those_that_there_are() -> None:
    assert get_args(Combine) == COMBINATIONS


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_models_stand_beside_each_other_in_80_columns(metric: str) -> None:
    labels = torch.arange(200) % 3
    single, both = (scale * torch.eye(3)[labels] for scale in (1.0, 2.0))
    single[:20] = single[:20].roll(1, dims=1)
    comparison = compare(both, single, labels)
    members = (Member(7, TrialPlan("test_resnet"), 2), Member(3, TrialPlan("test_resnet")))
    models = (
        ModelScores("trial 7", comparison.baseline, {}, 22_000_000, 12.25),
        ModelScores("ensemble", comparison.model, comparison.difference, 44_000_000, 123.5),
    )
    combination = Combination(ENSEMBLE, True, "As it was decided.", members, "cpu", models)
    direction = StudyDirection.MAXIMIZE if metric == "accuracy" else StudyDirection.MINIMIZE
    text = io.StringIO()
    print_combination(Console(file=text, width=80), combination, Objective(metric, direction, 2))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert lines[:2] == [
        "As it was decided.",
        "The model is the ensemble of trials 7 (weight 2) and 3.",
    ]
    title, alone, ensemble = lines[2:5]
    assert title.split()[-2:] == ["parameters", "latency"] and title.count("log loss") == 1
    assert alone.split()[:2] == ["trial", "7"] and alone.endswith("22,000,000  12.25 ms")
    value = "100.00 %" if metric == "accuracy" else f"{comparison.model.values[metric]:.4f}"
    assert value in ensemble and ensemble.endswith("44,000,000 123.50 ms")
    assert " to " in ensemble and "…" not in text.getvalue()
    assert lines[5].startswith("The gains are those over the single plan")
