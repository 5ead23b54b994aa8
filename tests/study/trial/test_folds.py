"""Trials in folds, in studies."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from PIL import Image
from safetensors.torch import load_file

from autotune.data.cache.array_cache import ArrayCache
from autotune.errors import StudyError
from autotune.results.evaluation.refit import refit_study
from autotune.study.setup.opening import OpenStudy, open_or_create
from autotune.study.state import attrs
from autotune.study.state.predictions import HEAT_MAPS, PREDICTIONS, read_predictions
from autotune.study.trial import run as trial_module
from autotune.study.trial.build import build_trial_trainer
from autotune.study.trial.context import build_context
from autotune.training.folds import CrossValidationTrainer
from autotune.training.metrics import Metrics
from tests.study.engine.test_worker import picture
from tests.support.commands.inline import run
from tests.support.pages.page import page_of
from tests.support.study.small import defined, open_small, small_config
from tests.support.study.studies import untimed_curves

pytestmark = pytest.mark.usefixtures("idle_machine")


def small(folder: Path, **named: Any) -> OpenStudy:
    return open_small(folder, data__folds=2, **named)


def test_a_study_in_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    inner = trial_module.confusion

    def noted(*arguments: Any) -> np.ndarray:
        drawn.append(inner(*arguments))
        return drawn[-1]

    monkeypatch.setattr(trial_module, "confusion", noted)
    monkeypatch.setattr("autotune.models.heat_maps.MIN_SIDE", 1)
    handle = small(tmp_path, training__num_views=2, search__trials=2)
    events = run(handle)
    epochs = [(event["trial"], event["epoch"]) for event in events if event["event"] == "epoch"]
    assert epochs[:2] == [(0, 1), (0, 2)]
    dataset = handle.study.user_attrs[attrs.DATASET]
    assert dataset["folds"] == [50, 50]  # data.train_per_class=5, of ten classes
    for trial in handle.study.trials:
        attributes = trial.user_attrs
        assert trial.state == TrialState.COMPLETE
        assert sorted(trial.intermediate_values) == [1, 2]
        assert trial.value == trial.intermediate_values[2] == attributes[attrs.METRICS]["accuracy"]
        assert attributes[attrs.EPOCHS] == 2
        assert set(attributes[attrs.DEVIATIONS]) == set(attributes[attrs.METRICS])
        with Image.open(BytesIO(picture(handle, "worst_images.jpg", trial.number))) as sheet:
            assert (sheet.format, sheet.size) == ("JPEG", (656, 888))
    # Every image is judged once, also in the table, with a heat map of the network that judged it.
    images = read_predictions(picture(handle, PREDICTIONS, 0))
    assert len({one.path for one in images}) == len(images) == dataset["validation"]
    assert picture(handle, HEAT_MAPS, 0)[:2] == b"\xff\xd8"
    assert [matrix.sum() for matrix in drawn] == [dataset["validation"]] * 2
    # Whatever was cut: two views in training, one in validation, of all images at once.
    entries = ArrayCache(handle.files.cache).keys("features")
    assert len({key.split("/")[1] for key in entries}) == 3
    text = page_of(handle.study).text
    assert f"{dataset['train']} in 2 folds, {dataset['test']} test" in text
    assert "Every value is a mean over 2 folds" in text
    assert " ± " in text


def test_weights_of_all_folds_give_the_value_again(tmp_path: Path) -> None:
    handle = small(tmp_path, search__trials=1)
    run(handle)
    (trial,) = handle.study.trials
    (weights,) = [
        one
        for one in get_all_artifact_meta(trial, storage=handle.storage)
        if one.filename == "weights.safetensors"
    ]
    plan = attrs.trial_plan(trial)
    assert plan is not None
    again = build_trial_trainer(plan, build_context(handle))
    assert isinstance(again, CrossValidationTrainer)
    state = load_file(handle.files.artifacts / weights.artifact_id)
    for number, one in enumerate(again.folds, start=1):
        own = {
            name.removeprefix(f"fold{number}."): value
            for name, value in state.items()
            if name.startswith(f"fold{number}.")
        }
        one.network.load_trainable_state(own)
    assert again.validate().to_json() == trial.user_attrs[attrs.METRICS]


def test_a_trial_is_pruned_with_all_its_folds(tmp_path: Path) -> None:
    handle = small(tmp_path, search__pruner="median", training__epochs=3, search__trials=2)
    study = handle.study

    class Always:
        def prune(self, *args: Any) -> bool:
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autotune.study.engine.worker.make_pruner", lambda *args: Always())
        run(handle)
    for trial in study.trials:
        assert trial.state == TrialState.PRUNED
        assert list(trial.intermediate_values) == [1]
        assert trial.user_attrs[attrs.EPOCHS] == 1
        assert len(untimed_curves(trial)["training_loss"]) == 1
        assert trial.user_attrs[attrs.DEVIATIONS]["accuracy"] >= 0


def test_a_batch_that_does_not_fit_is_halved_in_all_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = small(tmp_path, search__trials=1, cache__features="off")
    inner = trial_module.CrossValidationTrainer.run
    parts: list[list[int]] = []

    def short(self: CrossValidationTrainer, *args: Any) -> Any:
        parts.append([fold.micro_batch_size for fold in self.folds])
        if len(parts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return inner(self, *args)

    monkeypatch.setattr(trial_module.CrossValidationTrainer, "run", short)
    run(handle)
    (trial,) = handle.study.trials
    assert trial.state == TrialState.COMPLETE
    assert parts == [[64, 64], [32, 32]]


def test_inherited_channels_are_chosen_without_the_images_that_judge(tmp_path: Path) -> None:
    ctx = build_context(small(tmp_path, data__train_per_class=None))
    plan = ctx.space.baseline(ctx.config.baseline)
    training = build_trial_trainer(plan, ctx)
    assert isinstance(training, CrossValidationTrainer)
    material = ctx.resources.get(plan.backbone)
    for fold, cut in zip(training.folds, material.data.folds, strict=True):
        assert fold.raw_train.labels.tolist() == material.train.labels[cut.train].tolist()
        assert not {*cut.train} & {*cut.validation}


@pytest.mark.parametrize("changes", [{}, {"memory_gb": 0}])
def test_images_are_kept_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    ctx = build_context(small(tmp_path, training__num_views=3, cache=changes))
    material = ctx.resources.get(ctx.space.backbone)
    shared = material.train is material.validation
    assert shared == (not changes)
    assert material.cache_bytes == (len(material.train) * 3 * 3 * 16 * 16 if shared else 0)


def test_the_final_fit_trains_on_all_images_of_the_folds(tmp_path: Path) -> None:
    handle = small(tmp_path, search__trials=1)
    run(handle)
    result = refit_study(handle)
    dataset = handle.study.user_attrs[attrs.DATASET]
    assert (result.images, result.test_images) == (dataset["train"], dataset["test"])
    assert isinstance(result.test, Metrics)


def test_other_folds_are_another_study(tmp_path: Path) -> None:
    small(tmp_path)
    with pytest.raises(StudyError, match=r"data\.folds: 2 in the study, 3 now"):
        config = small_config(tmp_path, data__folds=3)
        open_or_create(defined(config), {})
    with pytest.raises(StudyError, match=r"data\.folds: 2 in the study, None now"):
        open_or_create(defined(small_config(tmp_path)), {})
