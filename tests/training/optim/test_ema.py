from __future__ import annotations

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3

from autotune.training.optim.ema import WeightAverage
from tests.support.models.backbones import network, plan, state_of, training


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_decay_is_that_of_timm(decay: float) -> None:
    net = network("test_resnet")
    mine, theirs = WeightAverage(net, decay), ModelEmaV3(net, decay, use_warmup=True)
    steps = [*range(1, 40), 1000, 10**6]
    assert [mine.decay_at(step) for step in steps] == [theirs.get_decay(step) for step in steps]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("head_epochs", [0, 1])
def test_the_average_is_that_of_timm(name: str, head_epochs: int) -> None:
    """Parameters, norm statistics and counters, over a whole training, bit by bit."""
    run = training(
        plan(name, 2, 8, dropout=0.2, lr=0.01, head_epochs=head_epochs), ema=0.9, dropping=True
    )
    timm_average = ModelEmaV3(run.network, decay=0.9, use_warmup=True)
    update = run._update

    def follow() -> None:
        update()
        step = run.phases.steps_of_phase(run.schedule.last_epoch)
        timm_average.update(run.network, step=step)

    run._update = follow  # type: ignore[method-assign]
    list(run.run())
    found, expected = state_of(run.eval_model), state_of(timm_average.module)
    assert [key for key, one in expected.items() if not torch.equal(one, found[key])] == []
    assert run.eval_model is not run.network
    moved = state_of(run.network)
    assert not torch.equal(found["head.0.weight"], moved["head.0.weight"])
