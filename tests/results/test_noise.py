"""The noise of differences between trials that were scored on the same images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.trial import create_trial

from autotune.results.noise import noise_between
from autotune.results.study_results import StudyResults
from autotune.study.state import attrs
from autotune.study.state.predictions import encode_scores
from tests.support.study.studies import VALIDATION, make_study


@pytest.mark.parametrize(("better", "worse"), [(12, 4), (0, 0), (30, 30)])
def test_only_images_on_which_two_disagree_count(better: int, worse: int) -> None:
    study = make_study(trials=1, running=0, failed=0)
    base = np.zeros(VALIDATION)
    base[:300] = 1.0
    other = base.copy()
    other[300 : 300 + better], other[:worse] = 1.0, 0.0
    for scores in (base, other):
        attributes = {attrs.IMAGE_SCORES: encode_scores(scores)}
        study.add_trial(create_trial(value=float(scores.mean()), user_attrs=attributes))
    results = StudyResults.from_study(study)
    noise = noise_between(results, *results.trials[-2:])
    assert noise is not None and not noise.is_bound
    # McNemar's: the discordant images, of equal networks one.
    variance = max(better + worse, 1) - (better - worse) ** 2 / VALIDATION
    assert noise.error == pytest.approx(math.sqrt(variance) / VALIDATION, rel=0.01)
    alone = math.sqrt(300 * 60 / VALIDATION) / VALIDATION
    assert (noise.error < alone) == (better + worse < 50)


def test_without_scores_only_an_accuracy_has_a_bound() -> None:
    for objective, is_bounded in (("accuracy", True), ("macro_f1", False), ("log_loss", False)):
        study = make_study(trials=1, running=0, failed=0, objective=objective)
        study.add_trial(create_trial(value=0.9))
        results = StudyResults.from_study(study)
        noise = noise_between(results, *results.trials)
        assert (noise is not None) == is_bounded
        assert noise is None or noise.is_bound
