"""The process of a worker, which the launcher starts as :mod:`autotune.study.engine.worker_main`.

The job is a line of JSON on standard input, events are lines of JSON on standard output, and the
end of standard input means that the launcher has ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.errors import AutotuneError, DeviceError, NoDeviceError
from autotune.study.devices import VISIBLE, find_device, gpu_name
from autotune.study.engine.pool import CHECK_GPU, Job
from autotune.study.engine.training_worker import run_training_worker
from autotune.study.engine.worker import run_worker
from autotune.study.trial.run import EventCallback
from autotune.text import VisibleFormatter, guard_standard_error

logger = logging.getLogger(__name__)


def run_worker_process(arguments: Sequence[str] = ()) -> int:
    """Run the worker that a launcher has started; see the module's docstring.

    Args:
        arguments: ``--check-gpu`` to report whether the GPU can be used before the job arrives.
    """
    if CHECK_GPU in arguments and not _check_gpu():
        return NoDeviceError.exit_code
    line = sys.stdin.readline()
    if not line:  # the launcher ended without a job for this process
        return 0
    job = Job(**json.loads(line))
    launcher = _take_stdin()
    # Standard output is for events; what libraries print goes to the log file.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    redirect_output_to_log(job.log)
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher handles Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_watch_launcher, args=(launcher, stop), daemon=True).start()

    def on_event(event: dict[str, Any]) -> None:
        try:
            print(json.dumps(event), file=events, flush=True)
        except BrokenPipeError:  # the launcher is gone; _watch_launcher notices too
            stop.set()

    return run_worker_reporting_errors(job, stop, on_event)


def _check_gpu() -> bool:
    """Tell the launcher whether this process can use its GPU.

    A GPU without free memory passes, because others may leave before the job arrives. If they do
    not, this process ends then, and another one replaces it.
    """
    try:
        event = {"event": "gpu", "gpu": gpu_name(find_device(os.environ[VISIBLE]))}
    except NoDeviceError as error:
        event = _no_device(error)
    except DeviceError as error:
        event = {"event": "crowded", "message": str(error)}
    print(json.dumps(event), flush=True)
    return event["event"] != "no_device"


def _no_device(error: NoDeviceError) -> dict[str, Any]:
    return {"event": "no_device", "message": str(error)}


def run_worker_reporting_errors(job: Job, stop: threading.Event, on_event: EventCallback) -> int:
    """Run a worker and turn what ends it into an event and an exit code.

    Args:
        job: What to do.
        stop: Set to interrupt.
        on_event: Called with every event; the last one is ``error`` if there was one.
    """
    try:
        (run_worker if job.trainings is None else run_training_worker)(job, stop, on_event)
    except NoDeviceError as error:
        logger.error("%s", error)
        on_event(_no_device(error))  # the GPUs of the other workers may be usable
        return error.exit_code
    except DeviceError as error:
        logger.error("%s", error)
        return error.exit_code  # without an event: the launcher replaces this process
    except AutotuneError as error:
        logger.error("%s", error)
        on_event({"event": "error", "message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except Exception as error:
        logger.exception("the worker stops")
        on_event({"event": "error", "message": f"{type(error).__name__}: {error}", "exit_code": 1})
        return 1
    return 0


def redirect_output_to_log(log: str) -> None:
    """Redirect the output of this process to a log file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    guard_standard_error()  # logs are read in terminals
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _take_stdin() -> int:
    """Keep the pipe to the launcher; processes forked from here get an empty standard input.

    A thread that waited in ``sys.stdin`` would hold its lock, and a forked child that closes its
    standard input would wait for that lock forever.
    """
    pipe = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return pipe


def _watch_launcher(pipe: int, stop: threading.Event) -> None:
    while os.read(pipe, 1024):
        pass
    stop.set()
