"""Studies that are made, and whose trials are trained, in this process."""

from __future__ import annotations

import os
import threading
from typing import Any

from autotune.config.schema import StudyConfig
from autotune.data.views.study_data import StudyData
from autotune.storage.paths import StudyPaths
from autotune.study.engine.pool import Job, worker_name
from autotune.study.engine.worker import run_worker
from autotune.study.setup.definition import define
from autotune.study.setup.opening import OpenStudy, open_or_create
from autotune.study.trial.run import EventCallback


def open_study(config: StudyConfig) -> OpenStudy:
    """Decode the images of a study, and make or continue it; no worker is started."""
    definition = define(config)
    files = StudyPaths.from_url(config.storage, config.files)
    opened = [
        StudyData.open(
            config.dataset,
            config.data,
            spec,
            files.cache,
            limit_bytes=config.cache.disk_bytes,
            manifest=definition.dataset.manifest,
        )
        for spec in definition.specs
    ]
    return open_or_create(definition, opened[-1].info.to_json())


def ignore(event: dict[str, Any]) -> None:
    """Take no notice of an event."""


def run_trials(study: OpenStudy, on_event: EventCallback = ignore, threads: int = 1) -> None:
    """Run the trials of a study by one worker in this process; 0 threads for torch's default."""
    job = Job(
        study=study.name,
        storage=study.url,
        files=str(study.files.root),
        worker=worker_name(os.getpid(), 0),
        index=0,
        workers=1,
        threads=threads,
        log="the terminal",
    )
    run_worker(job, threading.Event(), on_event)
