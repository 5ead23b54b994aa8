"""``autotune stop``: ask the workers of a study to stop, from any machine."""

from __future__ import annotations

import socket
import time
from typing import Annotated

import typer

from autotune.display import console
from autotune.text import plural

#: Seconds between two looks at a study that is stopping.
POLL_S = 1.0


def stop(
    study: console.ExistingArgument = "digits",
    overrides: console.Overrides = None,
    name: console.NameOption = None,
    storage: console.StorageOption = None,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="Wait at most so long until no trial runs."),
    ] = 120.0,
) -> None:
    """Stop a study that runs, on whatever machines; 'autotune run' continues it.

    Its workers interrupt their trials, which are queued and continue from their last epoch. Exit
    code 1: after the wait some still run.
    """
    opened = console.open_study(study, overrides, name, storage)
    from autotune.display.watch import poll
    from autotune.storage.rdb.connection import HEARTBEAT_INTERVAL_S, storage_errors
    from autotune.study.state import attrs

    stdout = console.stdout()
    request = f"stopped from {socket.gethostname()}; 'autotune run' continues it"
    with storage_errors(opened.url):
        reason = opened.trial_queue().request_stop(request)
    if not reason.is_request:
        stdout.print(f"the study {opened.name!r} has ended already: {reason.text}")
        return
    snapshot = poll(opened)
    if snapshot.live:
        stdout.print(
            f"{plural(len(snapshot.live), 'trial runs', 'trials run')} and no other one starts; "
            f"workers look every {HEARTBEAT_INTERVAL_S} s, and stop after their batch"
        )
    with stdout.status("waiting for the workers"):
        deadline = time.monotonic() + wait
        while snapshot.live and time.monotonic() < deadline:
            time.sleep(POLL_S)
            snapshot = poll(opened)
    for trial in snapshot.running:
        worker = trial.user_attrs.get(attrs.WORKER, "no worker")
        text = "still runs" if trial in snapshot.live else "is lost; 'autotune run' requeues it"
        stdout.print(f"trial {trial.number} of {worker} {text}")
    if snapshot.live:
        raise typer.Exit(1)
    stdout.print(f"the study {opened.name!r} is {reason.text}")
