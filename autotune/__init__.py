"""autotune: search which layers of a pretrained vision backbone to retrain.

Importing this package imports no torch; the names below are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autotune.version import __version__

if TYPE_CHECKING:
    from autotune.api import Study, run_seeds
    from autotune.config.loading import load_study_file
    from autotune.config.schema import StudyConfig
    from autotune.errors import AutotuneError, UserError
    from autotune.models.inspection import inspect_layers
    from autotune.plan import TrialPlan
    from autotune.results.model.model import Model
    from autotune.results.model.model_folder import load_model as load

#: Public name -> module, with ``:name`` where the module uses another name.
_HOMES = {
    "AutotuneError": "autotune.errors",
    "Model": "autotune.results.model.model",
    "Study": "autotune.api",
    "StudyConfig": "autotune.config.schema",
    "TrialPlan": "autotune.plan",
    "UserError": "autotune.errors",
    "inspect_layers": "autotune.models.inspection",
    "load": "autotune.results.model.model_folder:load_model",
    "load_study_file": "autotune.config.loading",
    "run_seeds": "autotune.api",
}

__all__ = [
    "AutotuneError",
    "Model",
    "Study",
    "StudyConfig",
    "TrialPlan",
    "UserError",
    "__version__",
    "inspect_layers",
    "load",
    "load_study_file",
    "run_seeds",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, _, other = _HOMES[name].partition(":")
        return getattr(import_module(module), other or name)
    raise AttributeError(f"module 'autotune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
