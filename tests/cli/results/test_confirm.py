"""``autotune confirm`` and ``autotune reproduce`` as one calls them."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from optuna.trial import create_trial

from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from tests.support.commands.inline import run
from tests.support.commands.inside import Ended, call
from tests.support.study.small import open_small


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenStudy:
    made = open_small(tmp_path_factory.mktemp("verbs"), search__pruner="none", training__epochs=1)
    run(made)
    return made


def said(opened: OpenStudy, *arguments: str) -> Ended:
    return call(*arguments, "--storage", opened.url, cwd=opened.files.root)


def test_confirm(opened: OpenStudy) -> None:
    first = said(opened, "confirm", "small", "--top", "2", "--seeds", "2")
    assert first.code == 0
    lines = first.err.splitlines()
    ready, done = ([one for one in lines if ("is ready" in one) == way] for way in (True, False))
    assert re.fullmatch(r"1 of 6: \S+.*, seed 1: .* %, time left 0:\d\d", done[0])
    # One that starts late may find nothing left to do.
    assert {*ready} <= {f"worker {number} is ready on cpu" for number in (0, 1)} and ready
    assert lines[-1].startswith("6 of 6: ")
    assert "study small, accuracy, seeds 1 to 2, 95 % intervals" in first.out
    assert len([one for one in first.out.splitlines() if " ± " in one]) == 3
    assert "\nbaseline: backbone frozen" in first.out
    assert "2 seeds, corrected for choosing among 2" in first.out
    assert first.out.endswith("'autotune refit' measures on others.\n")

    again = said(opened, "confirm", "small", "--top", "2", "--seeds", "2", "--json")
    assert again.code == 0 and again.err.count("(cached)") == 6
    values = json.loads(again.out)
    assert (values["level"], values["seeds"], values["trained"]) == (0.95, [1, 2], 0)
    assert values["verdict"]["trial"] == values["plans"][0]["trial"]
    for one in values["plans"]:
        low, high = one["gain_interval"]
        assert low <= one["gain"] <= high and one["is_better"] == (low > 0)

    for verb in ("best", "status"):
        ended = said(opened, verb, "small")
        assert (ended.code, ended.err) == (0, "")
        assert "onfirmed over seeds, on validation images: " in ended.out
    best = yaml.safe_load(said(opened, "best", "small").out)
    assert list(best) == ["study", "trial", "accuracy", "confirmed", "plan"]


def test_reproduce(opened: OpenStudy) -> None:
    ended = said(opened, "reproduce", "small", "1")
    assert (ended.code, ended.err) == (0, "")
    first, second, where, last = ended.out.splitlines()
    plan = attrs.trial_plan(opened.study.trials[1])
    assert plan is not None and first == f"trial 1: {plan.describe()}"
    value = f"{100 * (opened.study.trials[1].value or 0.0):.1f} %"
    assert second == f"accuracy {value} then, {value} now"
    assert where.startswith("trained on ")
    assert last == "equal bit by bit, after each of 1 epochs"


def test_another_value_is_exit_code_1(opened: OpenStudy) -> None:
    trial = opened.study.trials[1]
    assert trial.value is not None
    value = trial.value - 0.25
    attributes = {key: trial.user_attrs[key] for key in (attrs.PLAN, attrs.THREADS)}
    opened.study.add_trial(
        create_trial(value=value, intermediate_values={1: value}, user_attrs=attributes)
    )
    ended = said(opened, "reproduce", "small", str(len(opened.study.trials) - 1))
    assert ended.code == 1 and "by +0.25; epoch 1 differs the most, by +0.25" in ended.out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("confirm", "small", "--seeds", "1"), "Input should be greater than or equal to 2"),
        (("confirm", "smal"), "did you mean 'small'?"),
        (("reproduce", "small", "99"), "has the trials 0 to "),
    ],
)
def test_mistakes(opened: OpenStudy, arguments: tuple[str, ...], why: str) -> None:
    ended = said(opened, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert why in ended.err
