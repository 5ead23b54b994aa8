"""Optuna's private parts: what autotune uses of them is there, and one module alone uses it."""

from __future__ import annotations

import ast
import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest

import autotune

PACKAGE = Path(autotune.__file__).parent
THE_MODULE = PACKAGE / "optuna_private.py"
#: Private names that ``optuna_private`` imports: module and name.
IMPORTS = {
    ("optuna.pruners", "_filter_study"),
    ("optuna.storages._heartbeat", "BaseHeartbeat"),
    ("optuna.storages._rdb", "models"),
    ("optuna.study._constrained_optimization", "_CONSTRAINTS_KEY"),
    ("optuna.study._frozen", "FrozenStudy"),
}
#: Private attributes that it uses, by what has them.
ATTRIBUTES = {
    "study": {"_study_id", "_storage", "_thread_local", "_get_trials"},
    "trial": {"_trial_id", "_cached_frozen_trial"},
    "frozen trial": {"_trial_id", "_system_attrs"},
    "database storage": {"_get_trials", "_create_new_trial"},
    "distribution": {"_contains"},
    "GP sampler": {"_get_constraints_acqf_args", "_constraints_gprs_cache_list"}
    | {"_sample_relative_impl"},
}
#: Tables and columns that autotune reads and writes in its own statements.
TABLES = {
    "StudyModel": {"study_id", "study_name"},
    "TrialModel": {"trial_id", "number", "study_id", "state", "datetime_start"}
    | {"datetime_complete"},
    "StudyUserAttributeModel": {"study_id", "key", "value_json"},
    "StudySystemAttributeModel": {"study_id", "key", "value_json"},
    "TrialUserAttributeModel": {"trial_user_attribute_id", "trial_id", "key", "value_json"},
    "TrialSystemAttributeModel": {"trial_system_attribute_id", "trial_id", "key", "value_json"},
    "TrialParamModel": {"param_id", "trial_id", "param_name", "param_value"}
    | {"distribution_json"},
    "TrialValueModel": {"trial_value_id", "trial_id", "objective", "value", "value_type"},
    "TrialIntermediateValueModel": {"trial_intermediate_value_id", "trial_id", "step"}
    | {"intermediate_value", "intermediate_value_type"},
    "TrialHeartbeatModel": {"trial_id", "heartbeat"},
}
WAY_OUT = "autotune/optuna_private.py must follow this release"


@cache
def owners() -> dict[str, Any]:
    study = optuna.create_study()
    trial = study.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        gp = optuna.samplers.GPSampler()
    return {
        "study": study,
        "trial": trial,
        "frozen trial": study.trials[0],
        "database storage": optuna.storages.RDBStorage("sqlite://"),
        "distribution": optuna.distributions.IntDistribution(0, 1),
        "GP sampler": gp,
        "cache": optuna.storages.get_storage("sqlite://"),
    }


@pytest.mark.parametrize(("module", "name"), sorted(IMPORTS))
def test_optuna_has_the_private_name(module: str, name: str) -> None:
    try:
        found = hasattr(importlib.import_module(module), name)
        found = found or bool(importlib.import_module(f"{module}.{name}"))
    except ImportError:
        found = False
    assert found, f"Optuna {optuna.__version__} has no {module}.{name}: {WAY_OUT}"


@pytest.mark.parametrize(
    ("owner", "name"), sorted((owner, name) for owner in ATTRIBUTES for name in ATTRIBUTES[owner])
)
def test_optuna_has_the_private_attribute(owner: str, name: str) -> None:
    has_it = hasattr(owners()[owner], name)
    assert has_it, f"a {owner} of Optuna {optuna.__version__} has no {name}: {WAY_OUT}"


@pytest.mark.parametrize("model", sorted(TABLES))
def test_optuna_has_the_columns(model: str) -> None:
    models: Any = importlib.import_module("optuna.storages._rdb.models")
    assert hasattr(models, model), f"Optuna {optuna.__version__} has no {model}: {WAY_OUT}"
    lost = TABLES[model] - {column.name for column in getattr(models, model).__table__.columns}
    assert not lost, f"{model} of Optuna {optuna.__version__} has no {sorted(lost)}: {WAY_OUT}"


def test_a_study_reads_its_trials_again_once_they_are_forgotten() -> None:
    assert hasattr(owners()["study"]._thread_local, "cached_all_trials"), WAY_OUT


def private_imports(tree: ast.AST) -> set[tuple[str, str]]:
    """Return what a module imports of Optuna that has a private name on its way."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [(node.module, name.name) for name in node.names]
        elif isinstance(node, ast.Import):
            names = [(name.name, "") for name in node.names]
        else:
            continue
        found |= {
            (module, name)
            for module, name in names
            if module.split(".")[0] == "optuna" and "._" in f"{module}.{name}"
        }
    return found


def private_attributes(tree: ast.AST) -> set[str]:
    """Return the private attributes of Optuna's objects that a module uses on any but itself."""
    names = {
        name
        for owner in owners().values()
        for name in dir(owner)
        if name.startswith("_") and not name.startswith("__")
    }
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in names
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def test_the_lists_above_are_complete() -> None:
    tree = ast.parse(THE_MODULE.read_text("utf-8"))
    assert private_imports(tree) == IMPORTS
    assert private_attributes(tree) <= {name for names in ATTRIBUTES.values() for name in names}


def test_no_other_module_reaches_into_optuna() -> None:
    found = {
        str(path.relative_to(PACKAGE)): private_imports(tree) | private_attributes(tree)
        for path in PACKAGE.rglob("*.py")
        if path != THE_MODULE
        for tree in [ast.parse(path.read_text("utf-8"))]
    }
    assert {path: names for path, names in found.items() if names} == {}
