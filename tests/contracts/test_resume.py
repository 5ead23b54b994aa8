"""A training that was interrupted goes on as if it never had been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autotune.errors import TrialInterruptedError
from autotune.plan import TrainingPolicy, TrialPlan
from autotune.training.checkpoint import Checkpoint
from autotune.training.curves import TRAINING_LOSS, EpochResult, series
from autotune.training.folds import CrossValidationTrainer
from autotune.training.trainer import Trainer
from tests.support.marks import slow
from tests.support.models.backbones import differing, flat, folds, plan, training
from tests.support.models.surgery import change

EPOCHS = 4
RECIPES: dict[str, tuple[TrialPlan, dict[str, Any]]] = {
    "sgd": (plan("test_resnet", 2, 8, dropout=0.3, optimizer="sgd", lr=0.05), {}),
    "adamw": (plan("test_resnet", 5, layer_decay=0.7, label_smoothing=0.1), {"num_views": 3}),
    "adagrad": (plan("test_resnet", 1, 8, optimizer="adagrad"), {"num_views": 2, "ema": 0.9}),
    "dropout and ema": (plan("test_vit", 3, 8, dropout=0.5), {"ema": 0.98, "dropping": True}),
    "attention biases": (plan("levit_128s", 2, lr=0.01), {"ema": 0.9, "count": 20}),
    "bf16": (
        plan("test_resnet", 1, 8, dropout=0.3),
        {"precision": "bf16", "clip_grad_norm": None},
    ),
    "reshaped": (
        change(
            "test_resnet",
            {
                1: {"kernel": 5, "width": 0.5, "activation": "elu", "pool": "avg3"},
                2: {"kernel": 2, "bridge": 0.5, "drop_path": 0.3},
                3: {"width": 1.5, "bridge": 1.5},
            },
        ),
        {"ema": 0.9},
    ),
    "reshaped by data": (
        change(
            "test_efficientnet",
            {1: {"width": 0.5}, 2: {"width": 40, "kernel": 5}, 3: {"bridge": 2.0}},
            inherit="data",
        ),
        {},
    ),
    "reshaped and fitted": (
        change(
            "test_resnet",
            {1: {"kernel": 1}, 2: {"width": 0.5}},
            inherit="fit",
            policy=TrainingPolicy(l2_sp=0.1),
        ),
        {"ema": 0.9},
    ),
    "reshaped and drawn anew": (
        change(
            "test_vit", {1: {"width": 0.5, "dropout": 0.3}, 2: {"bridge": 0.5}}, inherit="none"
        ),
        {"ema": 0.9},
    ),
    "head first": (plan("test_resnet", 2, 8, dropout=0.3, head_epochs=2), {"ema": 0.9}),
    "pulled": (plan("test_vit", 3, optimizer="adagrad", l2_sp=0.1, weight_decay=0.1), {}),
    "mixed": (plan("test_efficientnet", 2, mixup=0.3), {"dropping": True}),
    "all of the policy": (
        plan(
            "test_resnet",
            3,
            8,
            dropout=0.3,
            optimizer="sgd",
            lr=0.05,
            momentum=0.5,
            layer_decay=0.8,
            label_smoothing=0.1,
            head_epochs=1,
            l2_sp=0.1,
            mixup=0.2,
            cutmix=1.0,
        ),
        {"dropping": True, "ema": 0.9, "num_views": 2},
    ),
    "all of the policy, reshaped": (
        change(
            "test_resnet",
            {1: {"width": 0.5, "drop_path": 0.3}, 2: {"kernel": 5}},
            inherit="data",
            policy=TrainingPolicy(
                layer_decay=0.7, head_epochs=3, l2_sp=0.5, mixup=0.4, cutmix=0.5
            ),
        ),
        {"ema": 0.98},
    ),
    "balanced": (plan("test_resnet", 2, 8, dropout=0.3), {"sampling": "balanced", "num_views": 2}),
    "head alone": (plan("test_convnext", 0, 8, dropout=0.3), {"warmup": 0.5}),
}


#: Of these there is one in folds, too: ``folds: sgd`` and so on.
IN_FOLDS = tuple(
    f"folds: {name}"
    for name in ("sgd", "reshaped by data", "reshaped and fitted", "all of the policy, reshaped")
)


def make(recipe: str, **more: Any) -> Trainer | CrossValidationTrainer:
    found, options = RECIPES[recipe.removeprefix("folds: ")]
    named = {"epochs": EPOCHS, **options, **more}
    if recipe in IN_FOLDS:
        return folds(found, **named)
    return training(found, **{"count": 36, **named})


def scores(results: list[EpochResult]) -> list[tuple[Any, ...]]:
    return [
        (one.epoch, one.loss, one.learning_rates, one.loss_error, one.metrics) for one in results
    ]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*RECIPES, *IN_FOLDS])
def test_interrupted_after_every_epoch(recipe: str, tmp_path: Path) -> None:
    whole = make(recipe)
    expected = scores(list(whole.run()))
    assert len(expected) == EPOCHS
    path = tmp_path / "0.pt"
    found: list[tuple[Any, ...]] = []
    for epoch in range(1, EPOCHS + 1):
        part = make(recipe)
        for result in part.run(Checkpoint(path)):
            if result.epoch > epoch:
                break  # it is killed before it can save this one
            found += scores([result])
    last = make(recipe)
    assert list(last.run(Checkpoint(path))) == []
    assert series(last.curves, TRAINING_LOSS) == series(whole.curves, TRAINING_LOSS)
    assert found == expected
    assert differing(flat(whole.state()), flat(last.state())) == []
    assert last.validate() == expected[-1][-1]


@pytest.mark.parametrize("recipe", ["sgd", "adagrad", "dropout and ema", "all of the policy"])
@pytest.mark.parametrize("batch", [4, slow(1), slow(5), slow(7)])
def test_interrupted_in_the_middle(recipe: str, batch: int, tmp_path: Path) -> None:
    """In the first, second or third batch of an epoch (three each), or in the validation."""
    check_interrupted(recipe, batch, tmp_path)


@pytest.mark.parametrize("recipe", [*map(slow, IN_FOLDS[:-1]), IN_FOLDS[-1]])
@pytest.mark.parametrize("batch", [4, slow(13)])
def test_interrupted_between_folds(recipe: str, batch: int, tmp_path: Path) -> None:
    """In the second fold of the first or of the second epoch (two batches, and one judged)."""
    check_interrupted(recipe, batch, tmp_path)


def check_interrupted(recipe: str, batch: int, tmp_path: Path) -> None:
    whole = make(recipe)
    expected = scores(list(whole.run()))
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > batch

    path = tmp_path / "0.pt"
    found: list[tuple[Any, ...]] = []
    part = make(recipe, stopped=stopped)
    with pytest.raises(TrialInterruptedError, match="stopped in"):
        for result in part.run(Checkpoint(path)):
            found += scores([result])
    rest = make(recipe)
    found += scores(list(rest.run(Checkpoint(path))))
    assert found == expected
    assert differing(flat(whole.state()), flat(rest.state())) == []


def test_equal_seeds_give_equal_trainings_and_others_do_not() -> None:
    # What happened in the process before must not matter.
    first = make("dropout and ema", seed=1)
    one = scores(list(first.run()))
    torch.manual_seed(99)
    torch.randn(7)
    second = make("dropout and ema", seed=1)
    two = scores(list(second.run()))
    third = make("dropout and ema", seed=2)
    three = scores(list(third.run()))
    assert one == two
    assert differing(flat(first.state()), flat(second.state())) == []
    assert all(a[1] != b[1] for a, b in zip(one, three, strict=True))


def test_a_result_is_never_lost(tmp_path: Path) -> None:
    """Who stops between taking a result in and asking for the next one gets it again."""
    path = tmp_path / "0.pt"
    seen = []
    for _ in range(3):
        run = make("sgd").run(Checkpoint(path))
        seen.append(next(run).epoch)
        run.close()
    assert seen == [1, 1, 1]
    assert not path.exists()
