"""How a final fit trains: fresh views, an average of the weights, parts that fit into memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.config.schema import RefitConfig, StudyConfig
from autotune.errors import UserError
from autotune.plan import LayerPlan, TrainingPolicy, TrialPlan
from autotune.study.trial.context import WorkerContext, build_context
from autotune.study.trial.refit import AVERAGED, ema_decay, refit_views, train_refit
from autotune.study.trial.retrain import retrain
from autotune.study.trial.trainings import Training
from autotune.training.trainer import Trainer
from tests.support.study.small import open_small, small_config

pytestmark = pytest.mark.usefixtures("idle_machine")

PLAN = TrialPlan("test_resnet.letters", 2, (LayerPlan(),) * 2, policy=TrainingPolicy(lr=0.01))
SMALL = Training("best", PLAN, micro_batch_size=32, refit=RefitConfig())


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> WorkerContext:
    return build_context(open_small(tmp_path_factory.mktemp("refit"), training__num_views=2))


def config(folder: Path, **overrides: Any) -> StudyConfig:
    return small_config(folder, **{"training__epochs": 20, "training__batch_size": 50} | overrides)


@pytest.mark.parametrize(
    ("fit", "training_ema", "head_epochs", "expected"),
    [
        ({}, None, 0, 1 - 1 / (AVERAGED * 20 * 4)),
        ({}, None, 10, 1 - 1 / (AVERAGED * 10 * 4)),  # of the steps in which layers are trainable
        ({}, None, 19, None),  # fewer than two steps are no average
        ({}, 0.99, 0, 0.99),
        ({"ema": "off"}, 0.99, 0, None),
        ({"ema": 0.5}, 0.99, 10, 0.5),
    ],
)
def test_how_long_the_average_is(
    fit: dict[str, Any],
    training_ema: float | None,
    head_epochs: int,
    expected: float | None,
    tmp_path: Path,
) -> None:
    policy = replace(PLAN.policy, head_epochs=head_epochs)
    study = config(tmp_path, training__ema=training_ema)
    found = ema_decay(study, RefitConfig(**fit), replace(PLAN, policy=policy), 200)
    assert found == (expected if expected is None else pytest.approx(expected))
    if training_ema is None and not fit:  # a frozen backbone has no phase of its own
        frozen = replace(PLAN, depth=0, layers=(), policy=policy)
        assert ema_decay(study, RefitConfig(), frozen, 200) == pytest.approx(1 - 1 / 4)


@pytest.mark.parametrize(
    ("views", "of_study", "expected"),
    [("online", 2, 20), ("study", 2, 2), ("online", 1, 1), ("study", "online", 20)],
)
def test_views(
    views: str, of_study: int | str, expected: int, ctx: WorkerContext, tmp_path: Path
) -> None:
    task = ctx.resources.get(PLAN.backbone).data
    study = config(tmp_path, training__num_views=of_study)
    found = refit_views(task, study, RefitConfig(views=views), 1 << 30)
    assert found.views == expected
    assert bool(found.cache_bytes) == (expected < 20)
    assert len(found) == len(task.train_rows) + len(task.validation_rows)


def test_what_is_judged_is_the_average_and_frozen_layers_are_untouched(ctx: WorkerContext) -> None:
    task = ctx.resources.get(PLAN.backbone).data
    fit = RefitConfig(ema=0.9, views="online")
    epochs: list[int] = []
    views = refit_views(task, ctx.config, fit, 0)
    found = train_refit(Training("best", PLAN, refit=fit), ctx, views, epochs.append)
    assert epochs == [1, 2]
    training = found.training
    assert training.eval_model is not training.network
    summary = found.summary.to_json()
    assert summary.pop("seconds") > 0
    assert len(summary.pop("curves")["training_loss"]) == 2
    assert summary == {"images": len(training.train), "views": "online", "epochs": 2, "ema": 0.9,
                      "part": 64}  # fmt: skip
    pretrained = ctx.resources.get(PLAN.backbone).backbone.pretrained.state_dict()
    state = training.eval_model.state_dict()
    frozen = [name for layer in training.network.layers[2:] for name in layer.names]
    assert frozen and all(
        torch.equal(state[f"backbone.{name}"], pretrained[name]) for name in frozen
    )


@pytest.mark.slow
def test_a_batch_that_does_not_fit_goes_through_in_parts(
    ctx: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ctx.resources.get(PLAN.backbone).data
    views = refit_views(task, ctx.config, RefitConfig(), 0)
    inner, predict = Trainer._step, Trainer.predict

    def short(self: Trainer, *args: Any) -> Any:
        if self.micro_batch_size > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return inner(self, *args)

    def shorter(self: Trainer, *args: Any) -> Any:
        if self.micro_batch_size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return predict(self, *args)

    monkeypatch.setattr(Trainer, "_step", short)
    monkeypatch.setattr(Trainer, "predict", shorter)
    found = train_refit(SMALL, ctx, views)
    assert found.summary.micro_batch_size == 16
    logits, labels = found.predict(ctx.resources.get(PLAN.backbone).validation)
    assert len(logits) == len(labels) and found.training.micro_batch_size == 8
    monkeypatch.setattr(Trainer, "_step", out_of_memory)
    with pytest.raises(UserError, match="even with 2 images at a time"):
        train_refit(SMALL, ctx, views)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")


def test_after_a_batch_that_does_not_fit_a_training_goes_on_from_its_last_epoch(
    ctx: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the values of a training that began with the small parts, but for the first epochs."""
    views = refit_views(ctx.resources.get(PLAN.backbone).data, ctx.config, RefitConfig(), 0)
    inner, begun, failed = Trainer._train_epoch, [], []

    def short(self: Trainer) -> float:
        begun.append((self.epoch, self.micro_batch_size))
        if self.epoch == 1 and not failed:
            failed.append(self.epoch)
            out_of_memory()
        return inner(self)

    monkeypatch.setattr(Trainer, "_train_epoch", short)
    epochs: list[int] = []
    train_refit(SMALL, ctx, views, epochs.append)
    count = ctx.config.training.epochs
    assert epochs == list(range(1, count + 1))
    assert begun == [(0, 32), (1, 32), *((epoch, 16) for epoch in range(1, count))]
    begun.clear()
    failed.clear()
    found = retrain(PLAN, ctx, micro_batch_size=32)
    assert begun == [(0, 32), (1, 32), *((epoch, 16) for epoch in range(1, count))]
    assert sorted(found.curve) == list(range(1, count + 1))
