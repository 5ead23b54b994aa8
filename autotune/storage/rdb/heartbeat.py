"""Heartbeats of running trials: writing them, and reading how old they are.

Optuna's own heartbeat thread ends at the first write that fails, and a healthy trial is then
declared dead (optuna issue 4994); and a trial of ``Study.ask`` has no heartbeat at all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import TracebackType

from sqlalchemy import func, select

from autotune.optuna_private import BaseHeartbeat, models
from autotune.storage.rdb.connection import HEARTBEAT_INTERVAL_S
from autotune.storage.rdb.retry import RetryingStorage

logger = logging.getLogger(__name__)

#: Seconds after a failed write until the next one.
RETRY_AFTER_S = 1.0


class Heartbeat:
    """Writes the heartbeat of one trial for as long as the context lasts.

    A write that fails is logged and soon retried: who looks for dead workers when the storage is
    back must not find an old heartbeat.
    """

    def __init__(
        self,
        storage: BaseHeartbeat,
        trial_id: int,
        on_beat: Callable[[], None] = lambda: None,
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._write: Callable[[], None] = partial(storage.record_heartbeat, trial_id)
        self._name = f"heartbeat of trial id {trial_id}"
        self._on_beat = on_beat
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            pause_s = self._interval_s
            try:
                self._write()
                self._on_beat()
            except Exception:  # a dead heartbeat would kill a healthy trial
                logger.warning(self._name, exc_info=True)
                pause_s = min(pause_s, RETRY_AFTER_S)
            if self._done.wait(pause_s):
                return


@dataclass(frozen=True)
class HeartbeatAges:
    """The ages of the heartbeats of running trials, at one moment.

    Args:
        now: The database's time in seconds of the Unix epoch.
        clock_skew_s: Seconds by which that is ahead of this machine's; 0 for SQLite.
        age_s: Seconds since the last heartbeat, by trial id, of trials that ever had one.
    """

    now: float
    clock_skew_s: float
    age_s: Mapping[int, float]


def read_heartbeat_ages(storage: RetryingStorage, trial_ids: Iterable[int]) -> HeartbeatAges:
    """Read the heartbeats of running trials, in two statements."""
    table = models.TrialHeartbeatModel
    heartbeats = select(table.trial_id, table.heartbeat).where(table.trial_id.in_(list(trial_ids)))
    with storage.engine.connect() as connection:
        before = time.time()
        now: datetime = connection.execute(select(func.now())).scalar_one()
        local = (before + time.time()) / 2
        rows = connection.execute(heartbeats).all()
    naive = now.replace(tzinfo=None)
    moment = local if now.tzinfo is None else now.timestamp()  # SQLite's is in whole seconds
    return HeartbeatAges(
        now=moment,
        clock_skew_s=moment - local,
        # A heartbeat that came after "now" was read is not from the future.
        age_s={trial_id: max(0.0, (naive - beat).total_seconds()) for trial_id, beat in rows},
    )
