"""The head alone at first, then all trainable layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import PlanError
from autotune.plan import TrialPlan
from autotune.training.curves import EpochResult
from autotune.training.optim.phases import Phases
from autotune.training.trainer import Trainer
from tests.support.models.backbones import network, plan, same_state, training

#: Plan and settings of trainings in which everything could move that must not: L2-SP is tested in
#: test_l2_sp.py, and all networks in tests/contracts/test_freezing.py.
RECIPES: dict[str, tuple[TrialPlan, dict[str, Any]]] = {
    "sgd": (
        plan("test_resnet", 3, 8, dropout=0.3, optimizer="sgd", lr=0.05, weight_decay=0.1),
        {"dropping": True, "ema": 0.9},
    ),
    "adamw": (plan("test_efficientnet", 2, weight_decay=1.0), {"dropping": True}),
}


def with_head_epochs(found: TrialPlan, epochs: int) -> TrialPlan:
    values = found.to_json()
    return TrialPlan.from_json({**values, "policy": {**values["policy"], "head_epochs": epochs}})


@pytest.mark.parametrize("recipe", ["sgd", "adamw"])
def test_the_first_phase_is_the_training_of_the_head_alone(recipe: str) -> None:
    """Loss by loss and bit by bit what a plan of depth 0 would be in as many epochs."""
    found, options = RECIPES[recipe]
    values = {**found.to_json(), "depth": 0, "layers": []}
    alone = training(TrialPlan.from_json(values), epochs=2, **options)
    expected = list(alone.run())
    run = training(with_head_epochs(found, 2), epochs=5, **options)
    results: list[EpochResult] = []
    for result in run.run():
        results.append(result)
        if result.epoch == 2:
            break
    assert [one.loss for one in results] == [one.loss for one in expected]
    assert [one.metrics for one in results] == [one.metrics for one in expected]
    assert same_state(run.network.head, alone.network.head)


def test_no_gradient_is_computed_for_the_backbone() -> None:
    run = training(plan("test_resnet", 5, head_epochs=1), epochs=2)
    graphs: list[bool] = []

    def note(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled():
            graphs.append(inputs[0].requires_grad)

    run.network.head.register_forward_pre_hook(note)
    results = run.run()
    next(results)
    assert graphs == [False] * 3
    state = run.optimizer.state_dict()["state"]
    assert len(state) == len(list(run.network.head.parameters()))
    next(results)
    assert graphs == [False] * 3 + [True] * 3
    assert all(one.grad is not None for one in run.network.parameters())
    assert len(run.optimizer.state_dict()["state"]) == len(list(run.network.parameters()))


def test_the_rate_and_the_average_begin_anew() -> None:
    run: Trainer = training(
        plan("test_resnet", 2, lr=0.01, head_epochs=2), epochs=6, warmup=0.25, ema=0.99
    )
    rates: list[float] = []
    same: list[bool] = []
    update = run._update

    def follow() -> None:
        rates.append(run.optimizer.param_groups[0]["lr"])
        update()
        same.append(same_state(run.network, run.eval_model))

    run._update = follow  # type: ignore[method-assign]
    list(run.run())
    # Three batches an epoch: six steps of the head alone, twelve of all.
    assert rates[:2] == pytest.approx([0.01 / 3, 0.02 / 3])
    assert rates[2] == pytest.approx(0.01)
    assert rates[5] < 0.002
    assert rates[6:10] == pytest.approx([0.01 * (i + 1) / 4 for i in range(4)])
    assert rates[10] < rates[9] and rates[-1] < 0.001
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0)
    assert [index for index, one in enumerate(same) if one] == [0, 6]


def test_without_trainable_layers_there_is_one_phase() -> None:
    found = [training(plan("test_resnet", head_epochs=epochs), epochs=3) for epochs in (0, 2, 9)]
    results = [[(one.loss, one.metrics) for one in run.run()] for run in found]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("epochs", [3, 4])
def test_trainable_layers_that_would_never_train_are_refused(epochs: int) -> None:
    message = rf"head_epochs must be below the 3 epochs .* but got {epochs}"
    with pytest.raises(PlanError, match=message):
        training(plan("test_resnet", 1, head_epochs=epochs), epochs=3)


@given(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
def test_steps_are_counted_in_each_phase(head_epochs: int, more: int, batches: int) -> None:
    policy = plan("test_resnet", 1, head_epochs=head_epochs).policy
    phases = Phases.from_policy(network("test_resnet", 1), policy, head_epochs + more, batches)
    assert phases.head_steps == head_epochs * batches
    alone = [phases.is_head_only(epoch) for epoch in range(head_epochs + more)]
    assert alone == [True] * head_epochs + [False] * more
    counted = [
        phases.steps_of_phase(step) for step in range(1, (head_epochs + more) * batches + 1)
    ]
    first, second = head_epochs * batches, more * batches
    assert counted == [*range(1, first + 1), *range(1, second + 1)]
