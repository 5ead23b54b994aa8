"""The identity of a checkpoint: it belongs to one trial of one study.

Files outlive studies. A study that is deleted and made again has trials of the same numbers; a
study that is copied or restored has other ids, and its own files beside it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from optuna.trial import FrozenTrial

from autotune.config.schema import StudyConfig
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.training.checkpoint import Checkpoint

#: Sections of a definition that change how a plan trains; the plan itself has the rest.
_SECTIONS = ("data", "training")


def checkpoint_for(handle: OpenStudy, config: StudyConfig, trial: FrozenTrial) -> Checkpoint:
    """Return the checkpoint of a trial; it has the values that earlier attempts reported."""
    first = attrs.first_attempt(trial)
    plan = trial.user_attrs[attrs.PLAN]
    attributes = handle.study.user_attrs
    definition = config.without_limits().stable_identity()
    identity = {
        "study": handle.uuid,
        "trial": first,
        "plan": digest(plan),
        "definition": digest({section: definition[section] for section in _SECTIONS}),
        "images": attributes[attrs.DATASET]["fingerprint"],
        "weights": attributes[attrs.BACKBONES][plan["backbone"]]["weights_hash"],
        "seed": config.search.seed,
    }
    path = handle.files.checkpoint(handle.name, first)
    return Checkpoint(path, identity, trial.intermediate_values.keys())


def digest(values: Any) -> str:
    """Return a digest of JSON values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
