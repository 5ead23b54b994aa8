"""Plugin files: found, run, made and checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from autotune.config.schema import StudyConfig
from autotune.errors import UserError
from autotune.search.backbone_limits import Candidate
from autotune.search.plugins import (
    PluginRef,
    load_pruner_plugin,
    load_sampler_plugin,
    load_space_plugin,
    plugin_refs,
)
from autotune.search.pruners import make_pruner
from autotune.search.samplers import make_sampler
from autotune.search.space import Space
from tests.support.models.spaces import FakeCapabilities, space_of

OFFERS: Any = (
    FakeCapabilities(1),
    FakeCapabilities(2, refused={"kernel": (7,)}),
    FakeCapabilities(3),
)
SPACE = space_of(
    of=OFFERS,
    trainable_layers={"low": 0, "high": 3},
    layers={"kernel": ["keep", 5]},
    head={"hidden_layers": [0, 1], "units": [64, 128]},
    training={"lr": {"low": 1e-3, "high": 0.1, "log": True}},
)
BACKBONE = Candidate(
    "resnet18",
    3,
    OFFERS,
    pool_problem=lambda pool: "cannot pool with 'max'" if pool == "max" else "",
    parameters=("all", "norms"),
)
SAMPLER = """
from optuna.samplers import RandomSampler

class MySampler(RandomSampler):
    def __init__(self, space, seed):
        super().__init__(seed)
        self.names = list(space.distributions)
"""
ONE_BY_ONE = """
from optuna.samplers import BaseSampler

class MySampler(BaseSampler):
    def __init__(self, space, seed): pass
    def infer_relative_search_space(self, study, trial): return {}
    def sample_relative(self, study, trial, search_space): return {RELATIVE}
    def sample_independent(self, study, trial, name, distribution): INDEPENDENT
"""


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str, name: str, **arguments: Any) -> str:
    path = write(folder, text)
    with pytest.raises(UserError) as caught:
        PluginRef.from_text(f"{path}:{name}").load()(**arguments)
    return str(caught.value).replace(f"{folder}/", "")


# Files


def test_a_file_is_run_once_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = write(
        tmp_path, "import sys\ncalls = []\ndef name():\n    calls.append(1)\n    return calls"
    )
    before, modules = list(sys.path), set(sys.modules)
    assert (
        PluginRef.from_text(f"{path}:name").load()()
        is PluginRef.from_text(f"{path}:name").load()()
    )
    assert sys.path == before
    (made,) = set(sys.modules) - modules
    assert made.startswith("_autotune_own_")
    assert [one.name for one in tmp_path.iterdir()] == ["mine.py"]
    path.write_text("def name():\n    return 'changed'")
    assert PluginRef.from_text(f"{path}:name").load()() == "changed"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, SAMPLER)
    with pytest.raises(UserError) as caught:
        PluginRef.from_text(f"{tmp_path}/mime.py:MySampler").load()
    assert str(caught.value) == (
        f"there is no file {tmp_path}/mime.py; a path is relative to the study file, on the "
        "command line to the working directory; did you mean 'mine.py'?"
    )


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("import os\n\nx = y + 1", "x", "mine.py:3 raises NameError: name 'y' is not defined"),
        ("def f(:\n  pass", "f", "mine.py:1 raises SyntaxError: invalid syntax"),
        ("import beside", "f", "mine.py:1 raises ModuleNotFoundError: No module named 'beside'"),
        ("import sys\nsys.exit(3)", "f", "mine.py:2 raises SystemExit: 3"),
        (
            "from os import getcwd\nclass MySampler: pass\ndef make(): pass\n",
            "MySampeler",
            "mine.py has no 'MySampeler'; it has MySampler, make; did you mean 'MySampler'?",
        ),
        ("", "make", "mine.py has no 'make'; it has nothing"),
        ("make = 3", "make", "mine.py:make must be a class or a function, but is int 3"),
        (
            "def make(space):\n    pass",
            "make",
            "mine.py (make) raises TypeError: make() got an unexpected keyword argument 'seed'",
        ),
        (
            "def make(seed):\n\n    raise ValueError('no')",
            "make",
            "mine.py:3 raises ValueError: no",
        ),
    ],
)
def test_a_file_that_fails_is_named_with_its_line(
    text: str, name: str, said: str, tmp_path: Path
) -> None:
    before = set(sys.modules)
    assert message(tmp_path, text, name, seed=1) == said
    left = [sys.modules[one] for one in set(sys.modules) - before]
    assert all("raises" not in said or "make" in vars(one) for one in left)


def test_which_keys_are_of_ones_own() -> None:
    config = StudyConfig.model_validate(
        {"dataset": "d", "backbone": "b", "search": {"sampler": "/a/b.py:C", "pruner": "none"}}
    )
    assert plugin_refs(config) == {"search.sampler": PluginRef(Path("/a/b.py"), "C")}


# Samplers and pruners


def study_of(reference: str, trials: int) -> optuna.Study:
    config = StudyConfig.model_validate(
        {"dataset": "d", "backbone": "resnet18", "search": {"sampler": reference}}
    )
    study = optuna.create_study(sampler=make_sampler(config, SPACE, 3))
    for _ in range(trials):
        trial = study.ask(dict(SPACE.distributions))
        study.tell(trial, trial.params["training.lr"])
    return study


@pytest.mark.parametrize(
    "text",
    [
        SAMPLER,
        ONE_BY_ONE.replace("{RELATIVE}", "{}").replace(
            "INDEPENDENT", "return distribution.to_external_repr(getattr(distribution, 'low', 0))"
        ),
        "from optuna.samplers import TPESampler\n"
        "def MySampler(space, seed): return TPESampler(seed=seed, n_startup_trials=2)",
        # Its own copy of the space may be changed.
        "from optuna.samplers import RandomSampler\n"
        "def MySampler(space, seed): return RandomSampler(space.distributions.pop('depth').high)",
    ],
)
def test_a_sampler_gives_canonical_points(text: str, tmp_path: Path) -> None:
    study = study_of(f"{write(tmp_path, text)}:MySampler", 6)
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        assert trial.params == SPACE.canonical(trial.params)


@pytest.mark.parametrize(
    ("relative", "independent", "said"),
    [
        ("{'depth': 9}", "return None", "mine.py:MySampler proposes depth = 9, but it must be of"),
        (
            "{'dept': 1}",
            "return None",
            "mine.py:MySampler proposes 'dept' = 1, which is no parameter of the space; did you "
            "mean 'depth'?",
        ),
        ("{}", "return 0.5", "mine.py:MySampler proposes depth = 0.5, but it must be of 0 to 3"),
        ("{}", "raise ValueError('no idea')", "mine.py:8 raises ValueError: no idea"),
    ],
)
def test_what_a_sampler_does_wrong_is_said(
    relative: str, independent: str, said: str, tmp_path: Path
) -> None:
    text = ONE_BY_ONE.replace("{RELATIVE}", relative).replace("INDEPENDENT", independent)
    with pytest.raises(UserError) as caught:
        study_of(f"{write(tmp_path, text)}:MySampler", 1)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(said)


def test_a_pruner_is_asked(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "from optuna.pruners import ThresholdPruner, BasePruner\n"
        "def make(epochs, workers): return ThresholdPruner(lower=epochs * workers)\n"
        "class Wrong(BasePruner):\n"
        "    def __init__(self, epochs, workers): pass\n"
        "    def prune(self, study, trial): return 1 / 0\n",
    )
    study = optuna.create_study(pruner=make_pruner(f"{path}:make", epochs=5, workers=2))
    trial = study.ask()
    trial.report(11, 1)
    assert not trial.should_prune()
    trial.report(9, 2)
    assert trial.should_prune()
    study.pruner = load_pruner_plugin(f"{path}:Wrong", epochs=5, workers=2)
    with pytest.raises(UserError, match=r"mine\.py:5 raises ZeroDivisionError: division by zero"):
        trial.should_prune()


def test_what_is_made_must_be_what_was_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "def make(*_, **__): return {}")
    with pytest.raises(UserError) as caught:
        load_sampler_plugin(f"{path}:make", SPACE, 0)
    assert str(caught.value) == (
        "mine.py:make must make an instance of optuna.samplers.BaseSampler, but made dict"
    )
    with pytest.raises(UserError, match=r"of optuna\.pruners\.BasePruner, but made dict"):
        load_pruner_plugin(f"{path}:make", 5, 1)
    with pytest.raises(UserError, match=r"of autotune\.search\.space\.Space, but made dict"):
        load_space_plugin(f"{path}:make", SPACE, [BACKBONE])


# Spaces

HEADER = """
from dataclasses import replace
from optuna.distributions import *

def make(space):
    searched, fixed, backbone = dict(space.distributions), dict(space.fixed), space.backbone
    BODY
    return replace(space, distributions=searched, fixed=fixed, backbone=backbone)
"""


def changed(folder: Path, body: str) -> Space:
    path = write(folder, HEADER.replace("BODY", "\n    ".join(body.split("; "))))
    return load_space_plugin(f"{path}:make", SPACE, [BACKBONE])


def test_a_space_can_be_narrowed_and_given_other_values(tmp_path: Path) -> None:
    found = changed(
        tmp_path,
        "searched['layer.3.kernel'] = CategoricalDistribution(['keep', 1, 7]); "
        "fixed['training.lr'] = 0.01; del searched['training.lr']; "
        "searched['training.mixup'] = FloatDistribution(0, 0.4); del fixed['training.mixup']",
    )
    assert found.distributions["layer.3.kernel"] == CategoricalDistribution(["keep", 1, 7])
    assert found.fixed["training.lr"] == 0.01
    assert "training.mixup" in found.distributions and "training.lr" not in found.distributions
    baseline = found.baseline()
    assert found.params(baseline) is not None
    assert changed(tmp_path, "pass") == SPACE


def test_a_space_that_is_changed_in_place_is_checked_too(tmp_path: Path) -> None:
    path = write(
        tmp_path, "def make(space):\n    del space.distributions['depth']\n    return space"
    )
    with pytest.raises(UserError, match="depth must be fixed or searched, but is missing"):
        load_space_plugin(f"{path}:make", SPACE, [BACKBONE])
    assert "depth" in SPACE.distributions


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("del searched['depth']", "depth must be fixed or searched, but is missing"),
        ("fixed['depth'] = 1", "depth must be fixed or searched, but is both"),
        ("fixed['training.lrr'] = 1", "'training.lrr' is no parameter of the space; did you mean"),
        ("backbone = 'x'", "the backbone must stay 'resnet18', but is 'x'"),
        (
            "searched['layer.1.kernel'] = CategoricalDistribution(['keep', 4])",
            "layer.1.kernel: must be one of keep, 1, 2, 3, 5, 7, but got 4",
        ),
        (
            "searched['layer.2.kernel'] = CategoricalDistribution(['keep', 5, 7])",
            "layer.2.kernel: cannot be 7",
        ),
        (
            "searched['training.lr'] = FloatDistribution(-1, 1)",
            "training.lr: low must be a number above 0 and at most 100, but got -1",
        ),
        ("searched['head.units.1'] = FloatDistribution(1, 9.5)", "head.units.1: must be an IntD"),
        (
            "fixed['inherit'] = 'all'; searched.pop('inherit', 0)",
            "inherit: must be one of weights",
        ),
        (
            "searched['head.hidden_layers'] = IntDistribution(0, 2)",
            "head.hidden_layers: must be at most 1, that of space.head.hidden_layers, but got 2",
        ),
        (
            "searched['depth'] = IntDistribution(0, 4)",
            "trainable_layers: must be at most 3, the number of layers of 'resnet18', but got 4",
        ),
        (
            "fixed['head.pool'] = 'max'",
            "head.pool: cannot pool with 'max'; 'resnet18' allows keep, avg, avgmax",
        ),
        (
            "fixed['training.parameters'] = 'biases'",
            "training.parameters: 'resnet18' has no biases that could train alone",
        ),
    ],
)
def test_the_first_thing_that_is_wrong_with_a_space(body: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        changed(tmp_path, body)
    assert str(caught.value).startswith(f"the space of mine.py:make: {said}")
