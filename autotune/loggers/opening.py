"""Makes the loggers of a run from what a study file, or a caller, names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autotune.config.schema import LOGGERS
from autotune.errors import UserError, did_you_mean, join_sentences, shorten
from autotune.loggers.background import Logger, Loggers
from autotune.loggers.mlflow import MLflow
from autotune.loggers.notification import Notification
from autotune.loggers.tensorboard import TensorBoard
from autotune.loggers.wandb import WandB

_MAKERS: dict[str, Callable[[], Logger]] = dict(
    zip(LOGGERS, (TensorBoard, MLflow, WandB), strict=True)
)


def open_loggers(loggers: Sequence[str | Logger], notify: str | None = None) -> Loggers:
    """Make loggers; none of them writes before the first event.

    Args:
        loggers: Names of loggers, and objects that can be called with an event.
        notify: The target of a notification, see :class:`Notification`.

    Raises:
        UserError: When there is no such logger, its package is missing, or it cannot log in.
    """
    opened = [_open(logger) for logger in loggers]
    if notify is not None:
        opened.append(("notify", Notification(notify)))
    return Loggers(opened)


def open_usable(names: Sequence[str], warn: Callable[[str], None]) -> Loggers:
    """Make the loggers of a study for a worker that joins it; it works without those it lacks.

    Args:
        names: Names of loggers.
        warn: Called with a text about each that cannot be used here.
    """
    opened = []
    for name in names:
        try:
            opened.append(_open(name))
        except UserError as error:
            warn(f"{error}; the trials of this worker are not logged there")
    return Loggers(opened)


def _open(logger: str | Logger) -> tuple[str, Logger]:
    """Return a logger with its name in messages: for an object that of its function or class."""
    if isinstance(logger, str):
        if logger not in _MAKERS:
            text = f"loggers: must be of {', '.join(LOGGERS)}, or objects, but got {logger!r}"
            raise UserError(join_sentences(text, did_you_mean(logger, LOGGERS)))
        return logger, _MAKERS[logger]()
    if not callable(logger) or isinstance(logger, type):
        hint = f"give an object: {logger.__name__}()" if isinstance(logger, type) else ""
        text = (
            "loggers: must be names or objects that can be called with an event, but got "
            f"{shorten(repr(logger))}"
        )
        raise UserError(join_sentences(text, hint))
    return f"the logger {getattr(logger, '__name__', type(logger).__name__)}", logger
