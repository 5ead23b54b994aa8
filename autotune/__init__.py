"""autotune: search which layers of a pretrained vision backbone to retrain.

Importing this package imports no torch; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.lazy import attach
from autotune.version import __version__ as __version__

if TYPE_CHECKING:
    from autotune.api import Study as Study
    from autotune.api import run_seeds as run_seeds
    from autotune.config.loading import load_study_file as load_study_file
    from autotune.config.schema import StudyConfig as StudyConfig
    from autotune.errors import AutotuneError as AutotuneError
    from autotune.errors import UserError as UserError
    from autotune.models.inspection import inspect_layers as inspect_layers
    from autotune.plan import TrialPlan as TrialPlan
    from autotune.results.model.model import Model as Model
    from autotune.results.model.model_folder import load_model as load  # noqa: F401

_names, __getattr__ = attach(
    __name__,
    {
        "AutotuneError": "errors",
        "Model": "results.model.model",
        "Study": "api",
        "StudyConfig": "config.schema",
        "TrialPlan": "plan",
        "UserError": "errors",
        "inspect_layers": "models.inspection",
        "load": "results.model.model_folder:load_model",
        "load_study_file": "config.loading",
        "run_seeds": "api",
    },
)
__all__ = sorted([*_names, "__version__"])


def __dir__() -> list[str]:
    return __all__
