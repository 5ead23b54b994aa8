"""The heartbeat of a running trial.

Optuna's own heartbeat thread ends at the first write that fails, and a healthy trial is then
declared dead (optuna issue 4994); and a trial that was asked for with ``ask`` has none at all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

from sqlalchemy import func, select

from autotune.optuna_private import BaseHeartbeat, models
from autotune.storage.rdb.connection import HEARTBEAT_INTERVAL_S
from autotune.storage.rdb.retry import RetryingStorage

logger = logging.getLogger(__name__)

#: After a write that failed, the next one follows so soon.
AGAIN_S = 1.0


class Heartbeat:
    """Writes the heartbeat of one trial for as long as the context lasts.

    A write that fails is logged and tried again soon: whoever sweeps when the storage is back must
    not find the last beat of before.

    Args:
        storage: The storage of the trial.
        trial_id: The trial.
        also: What else is to be done at every beat.
        interval_s: Seconds from beat to beat.
    """

    def __init__(
        self,
        storage: BaseHeartbeat,
        trial_id: int,
        also: Callable[[], None] = lambda: None,
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._storage = storage
        self._trial_id = trial_id
        self._also = also
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

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

    def _beat(self) -> None:
        while True:
            pause_s = self._interval_s
            try:
                self._storage.record_heartbeat(self._trial_id)
                self._also()
            except Exception:  # a dead heartbeat would kill a healthy trial
                logger.warning("heartbeat of trial id %s", self._trial_id, exc_info=True)
                pause_s = min(pause_s, AGAIN_S)
            if self._done.wait(pause_s):
                return


@dataclass(frozen=True)
class HeartbeatAges:
    """The heartbeats of the trials that run, and what time it was.

    Args:
        now: The database's time in seconds of the Unix epoch.
        clock_skew_s: Seconds by which the database's clock is ahead of this machine's; 0 for
            SQLite, which has this machine's.
        age_s: Seconds since the last heartbeat, by ``trial_id``; a running trial that is not in
            it never had one.
    """

    now: float
    clock_skew_s: float
    age_s: Mapping[int, float]


def read_heartbeat_ages(storage: RetryingStorage, trial_ids: Iterable[int]) -> HeartbeatAges:
    """Read heartbeats, in two statements.

    Args:
        storage: The open storage.
        trial_ids: Of the trials that run.
    """
    heartbeats = select(
        models.TrialHeartbeatModel.trial_id, models.TrialHeartbeatModel.heartbeat
    ).where(models.TrialHeartbeatModel.trial_id.in_(list(trial_ids)))
    with storage.engine.connect() as connection:
        before = time.time()
        now: datetime = connection.execute(select(func.now())).scalar_one()
        here = (before + time.time()) / 2
        rows = connection.execute(heartbeats).all()
    naive = now.replace(tzinfo=None)
    moment = here if now.tzinfo is None else now.timestamp()  # SQLite's is in whole seconds
    return HeartbeatAges(
        now=moment,
        clock_skew_s=moment - here,
        # A heartbeat that came in after "now" was read is none of the future.
        age_s={trial: max(0.0, (naive - beat).total_seconds()) for trial, beat in rows},
    )
