"""What determines a training, what is stored of it, and who has it.

Files outlive studies. A study that is deleted and made again has trials of the same numbers; a
study that is copied or restored has other ids, and its own files beside it. So a checkpoint says
to which training of which study it belongs.

A training outside of the search has a key, a digest of all that determines its result, and files
in a folder of its study::

    <key>.pt          the state after its last finished epoch, until it ends
    <key>.lock        locked by the process that trains it; the system takes the lock of one that
                      is killed
    <key>.refit.pt    the result of a refit; that of a confirmation has a folder of its own
    <key>.weights.pt  the result of a training on the training split whose weights are averaged
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial

from autotune.config.schema import RefitConfig, StudyConfig
from autotune.errors import place_as_user_error
from autotune.plan import TrialPlan
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs
from autotune.training.checkpoint import Checkpoint
from autotune.version import installed_version

#: Packages that decide how a plan trains; another version of one starts a training afresh.
_PACKAGES = ("autotune", "torch", "timm")


def digest(values: Any) -> str:
    """Return a digest of JSON values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def checkpoint_for(handle: OpenStudy, config: StudyConfig, trial: FrozenTrial) -> Checkpoint:
    """Return the checkpoint of a trial; it has the values that earlier attempts reported."""
    first = attrs.first_attempt(trial)
    plan = trial.user_attrs[attrs.PLAN]
    attributes = handle.study.user_attrs
    definition = config.without_limits().stable_identity()
    # The sections of a definition that change how a plan trains; the plan itself has the rest.
    sections = {section: definition[section] for section in ("data", "training")}
    identity = {
        "study": handle.uuid,
        "trial": first,
        "plan": digest(plan),
        "definition": digest(sections),
        "images": attributes[attrs.DATASET]["fingerprint"],
        "weights": attributes[attrs.BACKBONES][plan["backbone"]]["weights_hash"],
        "seed": config.search.seed,
    }
    path = handle.files.checkpoint(handle.name, first)
    return Checkpoint(path, identity, trial.intermediate_values.keys())


@dataclass(frozen=True)
class Training:
    """A plan to train outside of the search.

    Args:
        name: What messages call it; each training of a call has another name.
        plan: The plan.
        seed: Training seed; ``None`` for that of the study.
        micro_batch_size: Images that go through the network at a time; ``None`` for the batch.
        refit: How to train on training and validation images together; ``None`` to train as in
            the search.
        same_start: Whether the seed leaves the initial weights as they are in the study, so that
            the weights of several seeds can be averaged; without ``refit`` they are kept.
        teacher: Refits whose averaged probabilities are learned too, each with its weight.
        split_seed: Divides the images outside of the test split anew; ``None`` for the split of
            the study.
    """

    name: str
    plan: TrialPlan
    seed: int | None = None
    micro_batch_size: int | None = None
    refit: RefitConfig | None = None
    same_start: bool = False
    teacher: tuple[tuple[int, Training], ...] = ()
    split_seed: int | None = None

    @property
    def keeps_weights(self) -> bool:
        """Whether the result has the weights; that of a confirmation has none."""
        return self.refit is not None or self.same_start

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        refit = None if self.refit is None else self.refit.model_dump(mode="json")
        teacher = [[weight, member.to_json()] for weight, member in self.teacher]
        return {**vars(self), "plan": self.plan.to_json(), "refit": refit, "teacher": teacher}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Training:
        """Return what :meth:`to_json` has written."""
        refit = None if values["refit"] is None else RefitConfig.model_validate(values["refit"])
        teacher = tuple(
            (weight, Training.from_json(member)) for weight, member in values.get("teacher", ())
        )
        plan = TrialPlan.from_json(values["plan"])
        return Training(**{**values, "plan": plan, "refit": refit, "teacher": teacher})


def idle_files(folder: Path, age_s: float) -> tuple[Path, ...]:
    """Return the files of trainings of at least this age that no process has."""
    files = []
    for path in sorted(folder.glob("*")):
        lock = path.with_name(f"{path.name.partition('.')[0]}.lock")
        with suppress(OSError):  # removed meanwhile
            if time.time() - path.stat().st_mtime < age_s:
                continue
            if not lock.exists() or _is_free(lock):
                files.append(path)
    return tuple(files)


def _is_free(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False


@dataclass(frozen=True)
class TrainingFiles:
    """The files of a training.

    Args:
        key: Digest of all that determines its result, also of what a study of the same name that
            was made later has.
        identity: The same, and the versions of packages, for a state in the middle of it.
        folder: Where state and lock are.
        result: The file that exists when it has ended.
    """

    key: str
    identity: Mapping[str, Any]
    folder: Path
    result: Path

    @staticmethod
    def of(training: Training, handle: OpenStudy, config: StudyConfig) -> TrainingFiles:
        """Return the files of a training of a study."""
        definition, attributes = config.without_limits().stable_identity(), handle.study.user_attrs
        plan, dataset = training.plan.to_json(), attributes[attrs.DATASET]
        # The order and the values of this list are stored, as the names of files.
        parts = [
            plan,
            training.seed,
            config.search.seed,
            definition["training"],
            definition["data"],
            dataset["fingerprint"],
            attributes[attrs.BACKBONES][training.plan.backbone]["weights_hash"],
        ]
        if training.same_start:
            parts.append("same start")
        if training.split_seed is not None:
            parts.append(["split", training.split_seed])
        parts += [
            [weight, TrainingFiles.of(member, handle, config).key]
            for weight, member in training.teacher
        ]
        if training.refit is not None:
            parts += [training.refit.model_dump(mode="json"), dataset.get("test_fingerprint")]
        key, folder = digest(parts), handle.files.trainings(handle.name)
        if not training.keeps_weights:
            result = handle.files.confirmed(handle.name) / f"{key}.json"
        else:
            kind = "weights" if training.refit is None else "refit"
            result = folder / f"{key}.{kind}.pt"
        versions = {name: installed_version(name) for name in _PACKAGES}
        return TrainingFiles(key, {"training": key, **versions}, folder, result)

    @property
    def checkpoint(self) -> Checkpoint:
        """The state after the last finished epoch."""
        return Checkpoint(self.folder / f"{self.key}.pt", self.identity)

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Hold the lock of the training; yield whether no other process has it."""
        path = self.folder / f"{self.key}.lock"
        with place_as_user_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            with suppress(Timeout):
                lock.acquire(timeout=0)
        if not lock.is_locked:
            yield False
            return
        try:
            yield True
        finally:
            # A process that got the lock of this file meanwhile sees that it has lost its name.
            path.unlink(missing_ok=True)
            lock.release()
