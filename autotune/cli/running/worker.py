"""``autotune worker``: attach one more worker to a study, from any machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
import zlib
from typing import Annotated, Any

import typer

from autotune.display.console import (
    ExistingArgument,
    NameOption,
    Overrides,
    StorageOption,
    console,
    describe_image_progress,
    locate,
)
from autotune.runtime import set_gpu_defaults
from autotune.text import VisibleFormatter


def worker(
    study: ExistingArgument,
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
    files: Annotated[
        str | None, typer.Option(help="Folder of the study's files, where it is mounted here.")
    ] = None,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Wait so long for a study that is to come."),
    ] = 0.0,
) -> None:
    """Attach one more worker to a study that 'autotune run' has made."""
    located = locate(study, overrides, name, storage)
    set_gpu_defaults(os.environ)  # torch may read them when it is imported
    from autotune.data.sources.registry import fetch_source
    from autotune.results.study_results import StudyResults
    from autotune.study.engine.worker import Job, run_worker, worker_name
    from autotune.study.setup.opening import wait_for_existing

    shown = console()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    opened = wait_for_existing(located.name, located.storage, files or located.files, wait, stop)
    if opened is None:
        shown.print("Stopped before there was a study.", highlight=False)
        raise typer.Exit(130)
    objective = StudyResults.from_study(opened.study).objective
    shown.print(f"study {opened.name}: preparing the images and the backbone", highlight=False)
    with shown.status("opening the images") as line:
        fetch_source(
            opened.config().dataset,
            lambda step, done, total: line.update(describe_image_progress(step, done, total)),
        )
    told = logging.StreamHandler()
    told.setFormatter(VisibleFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[told])
    finished = 0

    def emit(event: dict[str, Any]) -> None:
        nonlocal finished
        if event["event"] == "ready":
            on = ", ".join(event[key] for key in ("device", "gpu") if event[key])
            shown.print(f"ready on {on}", highlight=False)
        elif event["event"] == "waiting":
            shown.print("waiting for the trials of the other workers", highlight=False)
        elif event["event"] == "start":
            shown.print(f"trial {event['trial']}: {event['plan']}", highlight=False, markup=False)
        elif event["event"] == "end":
            finished += event["state"] in ("complete", "pruned", "infeasible", "failed")
            value = "" if event["value"] is None else f" {objective.format_value(event['value'])}"
            shown.print(f"trial {event['trial']}: {event['state']}{value}", highlight=False)

    called = worker_name(os.getpid(), 0)
    job = Job(
        study=located.name,
        storage=located.storage,
        files=files or located.files,
        worker=called,
        index=zlib.crc32(called.encode()) % 997,  # no two draw the same
        workers=1,
        threads=0,
        log="(this terminal)",
    )
    ended = run_worker(job, stop, emit)
    many = "s" if finished != 1 else ""
    if stop.is_set():
        shown.print(f"Stopped after {finished} trial{many}.", highlight=False)
        raise typer.Exit(130)
    why = f": {ended.text}" if ended else ""
    shown.print(
        f"{finished} trial{many} finished here; the study {located.name!r} has no more to do{why}",
        highlight=False,
        markup=False,
    )
