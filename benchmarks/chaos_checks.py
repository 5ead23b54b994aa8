"""What must hold of a study after benchmarks/chaos.py is done with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from chaos_faults import NAME
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from safetensors.torch import load_file

from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from autotune.study.trial.build import build_trainer
from autotune.study.trial.context import WorkerContext, build_context

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
#: So long processes may take to see that their launcher is gone.
STOPPING_S = 120.0


def read_image(path: Path) -> None:
    Image.open(path).load()


#: Ending of an artifact -> what reads it whole; all others are images.
READERS: dict[str, Callable[[Path], object]] = {
    ".safetensors": load_file,
    ".npz": lambda path: dict(np.load(path)),
    ".csv": pd.read_csv,
}


def bad_ends(outputs: Sequence[Path], codes: Sequence[int], killed: Collection[int]) -> list[str]:
    """Say which runs ended in another way than with a result or a message.

    The message of a run whose workers died quotes a log, which may have its own tracebacks.

    Args:
        outputs: What each run said.
        codes: How each ended.
        killed: The positions of those that were killed.
    """
    found = []
    for start, (output, code) in enumerate(zip(outputs, codes, strict=True)):
        said = output.read_text(encoding="utf-8")
        before, message, _ = said.partition("\nerror: ")
        if start in killed and code == -9:
            continue
        if code not in (0, 1, 2) or (code and not message) or "\nTraceback" in before:
            found.append(f"start {start} ended with code {code}:\n{said[-3000:]}")
    return found


def still_running(folder: Path) -> list[str]:
    """Say which processes of the runs have outlived them."""
    until = time.monotonic() + STOPPING_S
    while (found := _processes_in(folder)) and time.monotonic() < until:
        time.sleep(1.0)
    return [f"still running: {one}" for one in found]


def _processes_in(folder: Path) -> list[str]:
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if Path(one.cwd()) == folder and any("autotune" in word for word in one.cmdline()):
                found.append(" ".join(one.cmdline()))
    return found


def broken_files(files: Path, url: str) -> list[str]:
    """Say what a full disk or a kill has left that is half, or not wanted any more."""
    found = [f"left behind: {path}" for path in files.rglob("*.pt*") if path.is_file()]
    opened = open_existing(NAME, url)
    for trial in opened.study.get_trials(deepcopy=False):
        for meta in get_all_artifact_meta(trial, storage=opened.storage):
            path = opened.files.artifacts / meta.artifact_id
            try:
                READERS.get(Path(meta.filename).suffix, read_image)(path)
            except Exception as error:
                found.append(f"{meta.filename} of trial {trial.number} is broken: {error}")
    command = [sys.executable, "-m", "autotune", "doctor", NAME, "--storage", url]
    doctor = subprocess.run(command, capture_output=True, text=True)
    return found + ([f"the doctor says:\n{doctor.stdout}"] if doctor.returncode else [])


def lines_in_logs(files: Path, words: str) -> int:
    """Count how often workers said something."""
    logs = (path.read_text(errors="replace") for path in files.rglob("worker-*.log"))
    return sum(log.count(words) for log in logs)


def faults(url: str, budget: int) -> list[str]:
    """Say what is wrong with a study that has ended."""
    opened = open_existing(NAME, url)
    trials = opened.study.get_trials(deepcopy=False)
    progress = attrs.count_progress(trials, budget)
    found = []
    if progress.finished != budget:
        found.append(f"{progress.finished} finished trials, and the budget is {budget}")
    if progress.running or progress.waiting:
        found.append(f"{progress.running} trials are running and {progress.waiting} queued")
    if [trial.number for trial in trials] != list(range(len(trials))):
        found.append("trial numbers are missing or there twice")
    if progress.failed:
        reasons = [one.user_attrs.get(attrs.REASON) for one in trials if _failed(one, trials)]
        found.append(f"{progress.failed} trials failed: {reasons}")
    plans = Counter(attrs.trial_plan(trial) for trial in trials if trial.state in FINISHED)
    found += [f"trained {count} times: {plan}" for plan, count in plans.items() if count > 1]
    # No value may depend on how its features came to be.
    shutil.rmtree(opened.files.cache, ignore_errors=True)
    ctx = build_context(opened)
    torch.set_num_threads(1)  # as the workers: sums of more threads are rounded differently
    return found + [
        fault for one in trials if one.state in FINISHED for fault in differences(one, trials, ctx)
    ]


def _failed(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    return trial.state == TrialState.FAIL and trial.number not in attrs.retried_numbers(trials)


def differences(
    trial: FrozenTrial, trials: Sequence[FrozenTrial], ctx: WorkerContext
) -> list[str]:
    """Train a trial's plan undisturbed; compare it and its earlier attempts, bit by bit.

    Every epoch of the trial must be there, and of each attempt all up to its last one.
    """
    plan = attrs.trial_plan(trial)
    assert plan is not None
    expected: dict[int, float] = {}
    for result in build_trainer(plan, ctx).run():
        assert result.metrics is not None
        expected[result.epoch] = result.metrics.objective(ctx.config.training.objective)
        if result.epoch == trial.last_step:
            break
    attempts = (trial, *(trials[number] for number in attrs.earlier_attempts(trial)))
    threads = {attempt.user_attrs.get(attrs.THREADS, 1) for attempt in attempts} - {1}
    if threads:
        return [f"trial {trial.number} cannot be compared: it trained on {threads} threads"]
    found = []
    if trial.value != expected[max(expected)]:
        found.append(f"trial {trial.number} has {trial.value}, undisturbed {expected}")
    for one in attempts:
        curve, last = one.intermediate_values, one.last_step or 0
        found += [
            f"epoch {epoch} of trial {one.number} is {curve.get(epoch)}, undisturbed {value}"
            for epoch, value in expected.items()
            if curve.get(epoch) != value and (one is trial or epoch <= last)
        ]
    return found
