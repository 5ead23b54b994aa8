"""One training of a confirmation: a plan under another seed, and the file with its scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autotune.atomic import atomic_file
from autotune.errors import DivergedError
from autotune.format_versions import CONFIRMATION, check_format, reading, refuse_unknown, stamp
from autotune.study.trial.context import WorkerContext
from autotune.study.trial.identity import digest
from autotune.study.trial.retrain import retrain
from autotune.study.trial.trainings import Training, TrainingFiles
from autotune.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

#: Fields of the file of one training.
FIELDS = (
    *("format", "autotune", "plan", "seed", "split_seed"),
    *("metrics", "failed", "curves", "checksum"),
)


def train_confirmation(
    training: Training,
    files: TrainingFiles,
    ctx: WorkerContext,
    on_epoch: Callable[[int, float], None],
    stopped: Callable[[], bool],
) -> None:
    """Train a plan under a seed, from where an earlier attempt has ended, and store its scores.

    A plan that diverges has no scores, and the reason.

    Raises:
        TrialInterruptedError: When a stop was requested; the state of the last epoch stays.
        DiskFullError: When the scores cannot be stored.
        UserError: When not even two images fit into memory.
    """
    metrics, failed, curves = None, "", {}
    try:
        trained = retrain(
            training.plan,
            ctx,
            on_epoch,
            seed=training.seed,
            micro_batch_size=training.micro_batch_size,
            checkpoint=files.checkpoint,
            stopped=stopped,
        )
        metrics, curves = trained.metrics.to_json(), dict(trained.curves)
    except DivergedError as error:
        failed = str(error)
    values = {"metrics": metrics, "failed": failed, "curves": curves}
    write_scores(files.result, {**_expected(training), **values})
    files.checkpoint.path.unlink(missing_ok=True)


def train_for_average(
    training: Training,
    files: TrainingFiles,
    ctx: WorkerContext,
    on_epoch: Callable[[int, float], None],
    stopped: Callable[[], bool],
) -> None:
    """Train a plan on the training split under a seed, from the initial weights of the study.

    The result has the metrics, and the weights of the network, or of that of each fold.

    Raises:
        DivergedError: When the training diverges.
        TrialInterruptedError: When a stop was requested; the state of the last epoch stays.
        DiskFullError: When the result cannot be stored.
        UserError: When not even two images fit into memory.
    """
    trained = retrain(
        training.plan,
        ctx,
        on_epoch,
        seed=training.seed,
        start_seed=ctx.config.search.seed,
        micro_batch_size=training.micro_batch_size,
        checkpoint=files.checkpoint,
        stopped=stopped,
    )
    weights = [trainer.eval_state() for trainer, _ in trained.predicted.trainers]
    result = {"metrics": trained.metrics.to_json(), "weights": weights}
    Checkpoint(files.result, files.identity).save(result, ctx.config.training.epochs)
    files.checkpoint.path.unlink(missing_ok=True)


def read_scores(path: Path, training: Training) -> dict[str, Any] | None:
    """Read the scores of a training; return ``None`` where it has to be trained.

    Raises:
        FormatError: When a later version has written them.
    """
    try:
        values: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):  # a power cut may leave an empty file
        values = None
    if not isinstance(values, dict) or not _is_intact(values):
        logger.warning("%s is damaged; training the plan again", path)
        return None
    check_format(values, CONFIRMATION, str(path))
    with reading(str(path), CONFIRMATION):
        refuse_unknown(values, FIELDS, "a confirmation")
    if any(values.get(key) != value for key, value in _expected(training).items()):
        logger.warning("%s belongs to another plan or seed; training the plan again", path)
        return None
    return values


def write_scores(path: Path, values: dict[str, Any]) -> None:
    """Write the scores of a training with a checksum; a power cut leaves all of it or nothing."""
    values = {**stamp(CONFIRMATION), **values}
    values["checksum"] = digest(values)
    with atomic_file(path, sync=True) as temporary:
        temporary.write_text(f"{json.dumps(values, indent=2)}\n", "utf-8")


def _expected(training: Training) -> dict[str, Any]:
    """Return what a file has to say of its training, as JSON gives it back: lists, not tuples."""
    values: dict[str, Any] = {"plan": training.plan.to_json(), "seed": training.seed}
    if training.split_seed is not None:
        values["split_seed"] = training.split_seed
    return dict(json.loads(json.dumps(values)))


def _is_intact(values: dict[str, Any]) -> bool:
    """Remove the checksum and compare; the first format has none."""
    checksum = values.pop("checksum", None)
    return bool(values.get("format", 1) == 1 if checksum is None else checksum == digest(values))
