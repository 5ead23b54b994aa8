"""How many times faster a model is than the baseline."""

from __future__ import annotations

import pytest

from autotune.results.values.speed import Speed, describe_speed


def test_a_load_that_meets_both_does_not_change_the_ratio() -> None:
    turns = [(2.0 * load, 3.0 * load) for load in (1.0, 1.0, 5.0, 2.0, 1.0)]
    speed = Speed.from_turns(turns, "cpu")
    assert (speed.ratio.value, speed.ratio.low, speed.ratio.high) == pytest.approx((1.5,) * 3)
    assert (speed.latency_ms, speed.baseline_latency_ms) == (2.0, 3.0)
    assert describe_speed(speed.to_json()) == (
        "One image takes 2 ms, and 3 ms with the baseline (cpu): 1.50 times as fast "
        "(95 % interval 1.50 to 1.50)."
    )


def test_turns_that_differ_have_an_interval() -> None:
    turns = [(1.0, ratio) for ratio in (1.2, 1.4, 1.5, 1.6, 1.8)] * 4
    ratio = Speed.from_turns(turns, "cpu").ratio
    assert ratio.value == 1.5 and 1.2 <= ratio.low < 1.5 < ratio.high <= 1.8
