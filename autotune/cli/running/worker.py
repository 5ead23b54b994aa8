"""``autotune worker``: attach one more worker to a study, from any machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
import zlib
from typing import Annotated, Any

import typer

from autotune.display import console
from autotune.runtime import set_gpu_defaults
from autotune.text import VisibleFormatter, plural


def worker(
    study: console.ExistingArgument,
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    files: console.FilesOption = None,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Wait so long for a study that is to come."),
    ] = 0.0,
) -> None:
    """Attach one more worker to a study that 'autotune run' has made."""
    located = console.locate(study, overrides, name, storage)
    set_gpu_defaults(os.environ)  # torch may read them when it is imported
    from autotune.data.sources.registry import fetch_source
    from autotune.loggers.opening import open_usable
    from autotune.results.study_results import StudyResults
    from autotune.study.engine.pool import Job, worker_name
    from autotune.study.engine.study_log import StudyLog, how_ended
    from autotune.study.engine.worker import run_worker
    from autotune.study.setup.opening import wait_for_existing

    stdout = console.stdout()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    folder = files or located.files
    opened = wait_for_existing(located.name, located.storage, folder, wait, stop)
    if opened is None:
        stdout.print("Stopped before there was a study.")
        raise typer.Exit(130)
    objective = StudyResults.from_study(opened.study).objective
    stdout.print(f"study {opened.name}: preparing the images and the backbone")
    with stdout.status("opening the images") as status:
        fetch_source(opened.config().dataset, status.on_progress)
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    finished = 0

    def warn(text: str) -> None:
        stdout.print(f"warning: {text}", markup=False, highlight=False)

    def on_event(event: dict[str, Any]) -> None:
        nonlocal finished
        match event["event"]:
            case "warning":
                warn(event["text"])
            case "ready":
                device = ", ".join(event[key] for key in ("device", "gpu") if event[key])
                stdout.print(f"ready on {device}")
            case "waiting":
                stdout.print("waiting for the trials of the other workers")
            case "start":
                stdout.print(f"trial {event['trial']}: {event['plan']}")
            case "end":
                state, value = event["state"], event["value"]
                finished += state in ("complete", "pruned", "infeasible", "failed")
                suffix = "" if value is None else f" {objective.format_value(value)}"
                stdout.print(f"trial {event['trial']}: {state}{suffix}")

    own_name = worker_name(os.getpid(), 0)
    job = Job(
        study=located.name,
        storage=located.storage,
        files=folder,
        worker=own_name,
        index=zlib.crc32(own_name.encode()) % 997,  # workers draw different samples
        workers=1,
        threads=0,
        log="(this terminal)",
    )
    log = StudyLog(opened, open_usable(opened.config().loggers, warn), on_event)
    with log.run() as tell_end:
        ended = run_worker(job, stop, log)
        tell_end(*how_ended(ended, stop.is_set()))
    count = plural(finished, "trial")
    if stop.is_set():
        stdout.print(f"Stopped after {count}.")
        raise typer.Exit(130)
    reason = f": {ended.text}" if ended else ""
    stdout.print(f"{count} finished here; the study {located.name!r} has no more to do{reason}")
    no_result = StudyResults.from_study(opened.study).no_result
    if no_result is not None:
        stdout.print(no_result.describe())
        raise typer.Exit(1)
