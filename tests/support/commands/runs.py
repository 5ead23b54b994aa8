"""Running the command as a user does: its own process, in its own folder."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from textwrap import indent

import optuna
from optuna.trial import FrozenTrial, TrialState

#: The digits study at its smallest: enough to train, over in seconds.
SMALL = (
    "training.epochs=3",
    "training.num_views=1",
    "data.train_per_class=5",
    "data.validation=0.1",
    "data.image_size=16",
    "space.head.hidden_layers=0",
    "baseline.head_start=random",  # a baseline with epochs, which can be interrupted
)


def command(*arguments: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", "autotune", *arguments]


def environment(**extra: str) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "AUTOTUNE_STORAGE"}
    return {**inherited, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **extra}


def in_workers(code: str) -> str:
    """Return code for :func:`with_site` that runs in the processes of workers alone."""
    worker = "['-m', 'autotune.study.engine.worker_main']"
    return f"import sys\nif sys.orig_argv[1:3] == {worker}:\n{indent(code, '    ')}"


def with_site(folder: Path, code: str) -> dict[str, str]:
    """Return the environment of processes that run some code when they begin."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{site}{os.pathsep}{Path(__file__).parents[3]}"}


def autotune(
    *arguments: str, cwd: Path, timeout: float = 180, **extra: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start(
    *arguments: str, cwd: Path, python: str = sys.executable, **extra: str
) -> subprocess.Popen[str]:
    """Start the command; its output goes to ``out.txt`` in its folder.

    Args:
        arguments: What follows ``autotune``.
        cwd: The folder to run it in.
        python: What runs it and its workers: Python, or the fixture ``warm``.
        extra: Changes of the environment.
    """
    with (cwd / "out.txt").open("w") as output:
        return subprocess.Popen(
            command(*arguments, python=python),
            cwd=cwd,
            env=environment(**extra),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell may have told its background jobs to ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def wait_for(condition: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.4)  # looking at a study costs as much as an epoch


def trials_of(folder: Path, study: str) -> list[FrozenTrial]:
    """Read the trials of a study in the default storage, or nothing while there is none."""
    path = folder / "storage/autotune.db"
    if not _has_study(path, study):
        return []
    storage = f"sqlite:///{path}"
    return optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)


def _has_study(path: Path, study: str) -> bool:
    """Ask without Optuna, which would make tables that a launcher may be making right now."""
    query = (
        "SELECT 1 FROM studies JOIN study_user_attributes USING (study_id)"
        " WHERE study_name = ? AND key = 'definition'"
    )
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
            return database.execute(query, (study,)).fetchone() is not None
    except sqlite3.OperationalError:
        return False


def epochs_running(trials: Sequence[FrozenTrial]) -> int:
    """Epochs that running trials have reported."""
    return sum(
        len(trial.intermediate_values) for trial in trials if trial.state == TrialState.RUNNING
    )
