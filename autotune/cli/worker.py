"""``autotune worker``: attach one more worker to a study, from any machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Annotated, Any

import typer

from autotune.cli.console import (
    NameOption,
    Overrides,
    StorageOption,
    StudyArgument,
    console,
    locate,
)


def worker(
    study: StudyArgument,
    overrides: Overrides = None,
    name: NameOption = None,
    storage: StorageOption = None,
    files: Annotated[
        str | None, typer.Option(help="Folder of the study's files, where it is mounted here.")
    ] = None,
) -> None:
    """Attach one more worker to a study that 'autotune run' has made."""
    located = locate(study, overrides, name, storage)
    from autotune.study.worker import Job, work, worker_name

    shown = console()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def emit(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            shown.print(f"trial {event['trial']}: {event['plan']}", highlight=False)
        elif event["event"] == "end":
            value = "" if event["value"] is None else f" {event['value']:.4f}"
            shown.print(f"trial {event['trial']}: {event['state']}{value}", highlight=False)

    job = Job(
        study=located.name,
        storage=located.storage,
        files=files or located.files,
        worker=worker_name(os.getpid(), 0),
        index=os.getpid() % 997,
        workers=1,
        threads=0,
        log="(this terminal)",
        timeout=None,
    )
    finished = work(job, stop, emit)
    shown.print(f"{finished} trials finished here; the study {located.name!r} has no more to do")
    if stop.is_set():
        raise typer.Exit(130)
