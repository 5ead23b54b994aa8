"""Does a study come out right while everything around it breaks?

Runs a small real study with worker processes, and meanwhile, at random moments, kills workers,
freezes them, restarts the Postgres server or holds SQLite's write lock. Then everything must be as
if nothing had happened: the budget exact, no number twice, no plan trained to the end twice,
nothing left running or queued, and every finished trial with the values of an undisturbed training
of its plan, bit by bit. Prints what was done and found; ends with exit code 1 where something is
wrong.

    python benchmarks/chaos.py --storage sqlite --kills 100
    python benchmarks/chaos.py --storage postgres --kills 100 --restarts 10 --freezes 2
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from optuna.trial import FrozenTrial, TrialState

from autotune.storage import local
from autotune.storage.database import GRACE_PERIOD_S, database_path
from autotune.study import record
from autotune.study.opening import open_existing
from autotune.study.trial import Workbench, prepare_training
from autotune.study.worker import prepare

NAME = "chaos"
#: Small trainings of a few seconds, so that most kills meet a trial in the middle.
STUDY = (
    "training.epochs=12",
    "training.views=2",
    "data.train_per_class=10",
    "data.validation=0.2",
    "data.image_size=16",
    "search.sampler=tpe",
    "search.pruner=percentile",
)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class Chaos:
    """What is done to a study.

    Args:
        url: Its storage.
        folder: Where the launcher runs, and the server's data are.
        rng: Chooses moments and victims.
        left: How often each thing is still to be done.
    """

    url: str
    folder: Path
    rng: random.Random
    left: Counter[str]
    done: Counter[str] = field(default_factory=Counter)

    def strike(self, launcher: int) -> None:
        """Do one of the things that are left; one that finds no victim is done later."""
        kind = self.rng.choices(list(self.left), weights=list(self.left.values()))[0]
        doing: dict[str, Callable[[int], bool]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "restart": self._restart,
            "lock": self._lock,
        }
        if doing[kind](launcher):
            self.done[kind] += 1
            self.left[kind] -= 1
            self.left += Counter()  # drops what is at 0

    def _victim(self, launcher: int) -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            found = [
                one
                for one in psutil.Process(launcher).children()
                if "autotune.study.worker" in one.cmdline() and one.status() != "zombie"
            ]
            return self.rng.choice(found) if found else None
        return None

    def _kill(self, launcher: int) -> bool:
        victim = self._victim(launcher)
        with suppress(psutil.NoSuchProcess):
            if victim is not None:
                victim.kill()
                return True
        return False

    def _freeze(self, launcher: int) -> bool:
        """Stop a worker for longer than the grace period; the others go on meanwhile."""
        victim = self._victim(launcher)
        if victim is None:
            return False

        def thaw() -> None:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGCONT)

        with suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGSTOP)
            threading.Timer(1.2 * GRACE_PERIOD_S, thaw).start()
        return True

    def _restart(self, launcher: int) -> bool:
        local.stop(self.folder / "postgres")
        time.sleep(self.rng.uniform(0, 5))
        local.start(self.folder / "postgres")
        return True

    def _lock(self, launcher: int) -> bool:
        """Hold SQLite's write lock for longer than a heartbeat takes."""
        with closing(sqlite3.connect(database_path(self.url), timeout=60)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(self.rng.uniform(15, 25))
            connection.rollback()
        return True


def run(chaos: Chaos, workers: int, trials: int, pause_s: float) -> list[int]:
    """Run the study to its end, starting it again where the launcher gave up; return the codes."""
    command = [sys.executable, "-m", "autotune.cli.main", "run", "digits", *STUDY]
    command += [f"search.trials={trials}", "--name", NAME, "--workers", str(workers)]
    environment = {**os.environ, "AUTOTUNE_STORAGE": chaos.url, "OMP_NUM_THREADS": "1"}
    codes: list[int] = []
    while not codes or (codes[-1] != 0 and len(codes) < 10):
        with (chaos.folder / "out.txt").open("a") as output:
            launcher = subprocess.Popen(
                command, cwd=chaos.folder, env=environment, stdout=output, stderr=output
            )
            while launcher.poll() is None:
                time.sleep(chaos.rng.expovariate(1 / pause_s))
                if chaos.left and launcher.poll() is None:
                    chaos.strike(launcher.pid)
        codes.append(launcher.returncode)
    return codes


def faults(url: str, budget: int) -> list[str]:
    """Say what is wrong with a study that has ended."""
    opened = open_existing(NAME, url)
    trials = opened.study.get_trials(deepcopy=False)
    progress = record.progress_of(trials, budget)
    found = []
    if progress.finished != budget:
        found.append(f"{progress.finished} finished trials, and the budget is {budget}")
    if progress.running or progress.waiting:
        found.append(f"{progress.running} trials are running and {progress.waiting} queued")
    if [one.number for one in trials] != list(range(len(trials))):
        found.append("trial numbers are missing or there twice")
    if progress.failed:
        reasons = [one.user_attrs.get(record.REASON) for one in trials if _failed(one, trials)]
        found.append(f"{progress.failed} trials failed: {reasons}")
    plans = Counter(record.plan_of(one) for one in trials if one.state in FINISHED)
    found += [f"trained {count} times: {plan}" for plan, count in plans.items() if count > 1]
    bench = prepare(opened)
    torch.set_num_threads(1)  # as the workers: sums of more threads are rounded differently
    return found + [
        fault for one in trials if one.state in FINISHED for fault in differences(one, bench)
    ]


def _failed(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    return trial.state == TrialState.FAIL and trial.number not in record.superseded(trials)


def differences(trial: FrozenTrial, bench: Workbench) -> list[str]:
    """Train a trial's plan undisturbed and compare it epoch by epoch, bit by bit."""
    plan = record.plan_of(trial)
    assert plan is not None
    expected = {}
    for result in prepare_training(plan, bench).run():
        assert result.metrics is not None
        expected[result.epoch] = result.metrics.objective(bench.config.training.objective)
        if result.epoch == trial.last_step:
            break
    if trial.intermediate_values == expected and trial.value == expected[max(expected)]:
        return []
    return [f"trial {trial.number} has {trial.intermediate_values}, undisturbed {expected}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--freezes", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=0, help="of the Postgres server")
    parser.add_argument("--locks", type=int, default=0, help="of SQLite, 15 to 25 s each")
    parser.add_argument("--pause", type=float, default=3.0, help="mean seconds between two")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    postgres = options.storage == "postgres"
    # Not below a long path: that of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        url = f"sqlite:///{folder}/storage/chaos.db"
        if postgres:
            url = local.start(folder / "postgres")
        left = Counter(
            kill=options.kills,
            freeze=options.freezes,
            restart=options.restarts if postgres else 0,
            lock=0 if postgres else options.locks,
        )
        chaos = Chaos(url, folder, random.Random(options.seed), +left)
        start = time.perf_counter()
        try:
            codes = run(chaos, options.workers, options.trials, options.pause)
            took = time.perf_counter() - start
            found = faults(url, options.trials)
        finally:
            if postgres:
                local.stop(folder / "postgres")
        done = ", ".join(f"{count} x {kind}" for kind, count in chaos.done.items()) or "nothing"
        print(f"{options.storage}, {options.workers} workers, {options.trials} trials: {done}")
        print(f"{took:.0f} s; the launcher was started {len(codes)} times, exit codes {codes}")
        print("\n".join(found) if found else "no fault found")
        if found:
            print((folder / "out.txt").read_text(encoding="utf-8")[-3000:])
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
