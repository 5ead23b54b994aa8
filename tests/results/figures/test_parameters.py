"""The figures of the searched parameters."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from autotune.results.figures import parameters
from autotune.search.backbone_limits import BackboneLimits
from autotune.search.space import Space
from autotune.study.state import attrs
from tests.support.figures import add, best_of, some, traces
from tests.support.studies import ONE_PARAMETER, make_study


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study()


def test_importances_need_values_that_differ() -> None:
    study = make_study(trials=0, running=0, failed=0, space=ONE_PARAMETER)
    for depth in (1, 2, 3):
        add(study, {"depth": depth}, {"depth": IntDistribution(0, 5)}, 0.5)
    assert parameters.importances_figure(study) is None


def test_importances_name_every_parameter(study: Study) -> None:
    bars = some(parameters.importances_figure(study)).data[0]
    assert set(bars.y) == set(parameters.parameter_names(study))
    assert sum(bars.x) == pytest.approx(1.0)


def test_importances_leave_out_what_had_hardly_an_effect() -> None:
    study = make_study(trials=8)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    space = parameters.space_of(study)

    def effective(name: str) -> int:
        return sum(parameters.is_active(space, one, name) for one in complete)

    names = parameters.parameter_names(study)
    shown = parameters.importances(study)
    assert set(shown) == {name for name in names if effective(name) >= parameters.EFFECTIVE}
    assert set(shown) < set(names)
    assert sum(shown.values()) == pytest.approx(1)


@pytest.mark.parametrize("others", [None, {"small": 3}], ids=["one backbone", "two"])
def test_a_parameter_has_a_meaning_where_its_value_changes_the_plan(
    others: dict[str, int] | None,
) -> None:
    study = make_study(trials=60, others=others)
    space = parameters.space_of(study)
    assert space is not None
    told = set()
    drawn = [one for one in study.get_trials(states=(TrialState.COMPLETE,)) if one.params]
    for one in drawn:
        for name, found in space.distributions.items():
            values: list[object] = (
                list(found.choices)
                if isinstance(found, CategoricalDistribution)
                else [found.low, found.high]  # type: ignore[attr-defined]
            )
            forms = [space.canonical({**one.params, name: value}) for value in values]
            expected = any(form != forms[0] for form in forms)
            assert parameters.is_active(space, one, name) == expected, name
            told.add((name, expected))
    assert len({name for name, expected in told if not expected}) >= 3


def test_slices(study: Study) -> None:
    best = best_of(study)
    found = traces(parameters.slice_figure(study, "training.lr"))
    assert list(found["best"].x) == [best.params["training.lr"]]
    figure = some(parameters.slice_figure(study, "training.lr"))
    assert figure.layout.xaxis.type == "log"
    pools = some(parameters.slice_figure(study, "head.pool")).layout.xaxis
    assert list(pools.categoryarray) == ["avg", "max", "avgmax"]


def test_slices_leave_out_inert_values(study: Study) -> None:
    figure = some(parameters.slice_figure(study, "head.units.2"))
    expected = {
        one.number
        for one in study.get_trials(states=(TrialState.COMPLETE,))
        if one.params.get("head.hidden_layers") == 2
    }
    assert {row[0] for trace in figure.data for row in trace.customdata} == expected


def test_slice_of_one_parameter() -> None:
    study = make_study(space=ONE_PARAMETER)
    assert parameters.parameter_names(study) == ("depth",)
    assert some(parameters.slice_figure(study, "depth")).layout.xaxis.title.text == "depth"
    assert "baseline" in traces(parameters.slice_figure(study, "depth"))


def test_the_space_is_the_one_that_the_study_remembers(study: Study) -> None:
    space = some(parameters.space_of(study))
    assert tuple(space.distributions) == parameters.parameter_names(study)
    assert all(
        space.distributions[name] == found
        for one in study.trials
        for name, found in one.distributions.items()
    )


def test_slices_of_a_layer_show_the_trials_that_tune_it() -> None:
    layers = {"kernel": ["keep", 1, 5], "last": 2}
    study = make_study(space={**ONE_PARAMETER, "layers": layers})
    shown = some(parameters.slice_figure(study, "layer.2.kernel"))
    expected = {
        one.number
        for one in study.get_trials(states=(TrialState.COMPLETE,))
        if one.params["depth"] >= 2
    }
    assert {row[0] for trace in shown.data for row in trace.customdata} == expected
    assert "layer.3.kernel" not in parameters.parameter_names(study)


def test_slices_of_a_policy_show_the_trials_in_which_it_means_something() -> None:
    training = {
        "optimizer": ["sgd", "adamw"],
        "momentum": {"low": 0.0, "high": 0.95},
        "head_epochs": {"low": 0, "high": 4},
        "l2_sp": {"low": 1e-4, "high": 1.0, "log": True},
        "mixup": [0.0, 0.2],
    }
    study = make_study(space={**ONE_PARAMETER, "training": training})
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    every = {one.number for one in complete}
    trainable = {one.number for one in complete if one.params["depth"] > 0}
    sgd = {one.number for one in complete if one.params["training.optimizer"] == "sgd"}
    expected = {"momentum": sgd, "head_epochs": trainable, "l2_sp": trainable, "mixup": every}
    assert all(every - one for one in (trainable, sgd))
    for name, numbers in expected.items():
        figure = some(parameters.slice_figure(study, f"training.{name}"))
        shown = {row[0] for trace in figure.data for row in trace.customdata}
        assert shown == numbers, name
        axis = figure.layout.xaxis
        assert axis.title.text == f"training.{name}"
        assert (axis.type == "log") == (name == "l2_sp")
        assert (axis.dtick == 1) == (name == "head_epochs" or axis.type == "log")


@pytest.mark.parametrize("stored", [None, {"colour": 3}, {"backbone": "r", "fixed": 3}])
def test_a_space_that_cannot_be_read_does_not_hide_the_trials(stored: object) -> None:
    other = make_study()
    other.set_user_attr(attrs.SPACE, stored)
    assert parameters.space_of(other) is None
    drawn = some(parameters.slice_figure(other, "head.units.2"))
    assert sum(len(trace.x) for trace in drawn.data) > 0


def test_values_that_mean_the_same_to_a_backbone_do_not_hide_the_others() -> None:
    kernel = CategoricalDistribution(["keep", 3, 5])
    limits = {"a": BackboneLimits(2, {"layer.1.kernel": ("keep", 3)}), "b": BackboneLimits(2, {})}
    fixed = {"depth": 1, "head.hidden_layers": 0, "training.optimizer": "adamw"}
    searched = {"backbone": CategoricalDistribution(["a", "b"]), "layer.1.kernel": kernel}
    space = Space("a", fixed, searched, limits)
    trial = create_trial(
        value=0.5, params={"backbone": "a", "layer.1.kernel": 3}, distributions=searched
    )
    assert parameters.is_active(space, trial, "layer.1.kernel")
