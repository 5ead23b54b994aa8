"""When the workers of a study last gave a sign of life, by the database's clock.

A heartbeat is the moment at which the database took it down, and silence is judged by the same
clock: that of a worker's machine has no say in it. Optuna stores heartbeats without a time zone,
in that of the database session (Postgres) or in UTC (SQLite); a difference to the session's "now"
is right in both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from optuna.storages._rdb.models import TrialHeartbeatModel
from sqlalchemy import func, select

from autotune.storage.patience import PatientStorage


@dataclass(frozen=True)
class Beats:
    """The heartbeats of the trials that run, and what time it was.

    Args:
        now: The database's time in seconds of the Unix epoch.
        ahead_s: By how many seconds the database's clock is ahead of this machine's; of SQLite,
            whose clock is this machine's, 0.
        age_s: Seconds since the last heartbeat, by ``trial_id``; a running trial that is not in
            it never had one.
    """

    now: float
    ahead_s: float
    age_s: Mapping[int, float]


def read_beats(storage: PatientStorage, trial_ids: Iterable[int]) -> Beats:
    """Read heartbeats, in two statements.

    Args:
        storage: The open storage.
        trial_ids: Of the trials that run.
    """
    heartbeats = select(TrialHeartbeatModel.trial_id, TrialHeartbeatModel.heartbeat).where(
        TrialHeartbeatModel.trial_id.in_(list(trial_ids))
    )
    with storage.engine.connect() as connection:
        before = time.time()
        now: datetime = connection.execute(select(func.now())).scalar_one()
        here = (before + time.time()) / 2
        rows = connection.execute(heartbeats).all()
    naive = now.replace(tzinfo=None)
    moment = here if now.tzinfo is None else now.timestamp()  # SQLite's is in whole seconds
    return Beats(
        now=moment,
        ahead_s=moment - here,
        # A heartbeat that came in after "now" was read is none of the future.
        age_s={trial: max(0.0, (naive - beat).total_seconds()) for trial, beat in rows},
    )
