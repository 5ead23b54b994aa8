"""Does a study come out right while everything around it breaks?

Runs a small real study with worker processes, and meanwhile, at random moments, kills workers,
freezes them, fills the disk of their files, restarts the Postgres server, or holds SQLite's write
lock. Then everything must be as if nothing had happened: the budget exact, no number twice, no
plan trained to the end twice, nothing left running or queued, every finished trial with the values
of an undisturbed training of its plan, bit by bit, every file whole, and every end of a run one
message. Prints what was done and found; ends with exit code 1 where something is wrong.

    python benchmarks/chaos.py --storage sqlite --kills 100 --locks 1 --long-locks 1 --fills 2
    python benchmarks/chaos.py --storage postgres --kills 100 --restarts 10 --freezes 1

Freezes begin as soon as trials run, before anything else is done. Whoever finds the frozen worker
silent gives its trial back, at the latest 'autotune doctor --fix' just before it wakes. Disks are
filled while somebody trains, and not while the database is locked.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import torch
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import FrozenTrial, TrialState
from PIL import Image
from safetensors.torch import load_file

from autotune.errors import StorageError, StudyError
from autotune.storage import local
from autotune.storage.database import GRACE_PERIOD_S
from autotune.storage.url import database_path
from autotune.study import record
from autotune.study.opening import open_existing
from autotune.study.preparing import Workbench, prepare_training
from autotune.study.worker import prepare

NAME = "chaos"
#: Small trainings of a few seconds, so that most kills meet a trial in the middle.
STUDY = (
    "training.epochs=24",
    "training.views=2",
    "data.train_per_class=10",
    "data.validation=0.2",
    "data.image_size=16",
    "search.sampler=tpe",
    "search.pruner=percentile",
)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


#: Size of the disk that is filled: the doctor asks for 1 GB of free space.
DISK_MIB = 1200
#: So long a disk is full, and so often at most a run is started.
FULL_S = 20.0
STARTS = 60


@dataclass
class Chaos:
    """What is done to a study.

    Args:
        url: Its database.
        folder: Where the launcher runs, and the server's data are.
        files: Where the files of the study are.
        rng: Chooses moments and victims.
        left: How often each thing is still to be done.
    """

    url: str
    folder: Path
    files: Path
    rng: random.Random
    left: Counter[str]
    done: Counter[str] = field(default_factory=Counter)
    frozen: set[int] = field(default_factory=set)
    #: What ends by itself: freezes, full disks.
    passing: list[threading.Thread] = field(default_factory=list)

    def strike(self, launcher: int) -> None:
        """Do one of the things that are left; one that finds no victim is done later."""
        # Kills are many, and must not keep the others for the end, when the study may be over.
        weights = [min(count, 8) for count in self.left.values()]
        kind = self.rng.choices(list(self.left), weights)[0]
        if self.left["freeze"]:
            kind = "freeze"
        elif any(one.is_alive() for one in self.passing):
            # Longer things would hide what is going on, and too many kills leave nobody to go on.
            kind = "kill" if self.left["kill"] and self.rng.random() < 1 / 3 else ""
        doing: dict[str, Callable[[int], bool]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "restart": self._restart,
            "lock": lambda _: self._lock(self.rng.uniform(20, 30)),
            # Longer than the busy timeout of 60 s, and than the grace period.
            "long lock": lambda _: self._lock(1.2 * GRACE_PERIOD_S),
            "fill": self._fill,
        }
        if kind and doing[kind](launcher):
            self.done[kind] += 1
            self.left[kind] -= 1
            self.left += Counter()  # drops what is at 0

    def _workers(self, launcher: int) -> list[psutil.Process]:
        """Return the workers of a launcher that are not frozen, in the order of their start."""
        with suppress(psutil.NoSuchProcess):
            found = [
                one
                for one in psutil.Process(launcher).children()
                if "autotune.study.process" in one.cmdline()
                and one.status() != "zombie"
                and one.pid not in self.frozen
            ]
            return sorted(found, key=lambda one: one.pid)
        return []

    def _kill(self, launcher: int) -> bool:
        workers = self._workers(launcher)
        with suppress(psutil.NoSuchProcess):
            if workers:
                self.rng.choice(workers).kill()
                return True
        return False

    def _freeze(self, launcher: int) -> bool:
        """Stop a worker in a trial for longer than the grace period; the others go on."""
        workers = self._workers(launcher)
        for trial in self._training():
            # Nobody was killed yet: the number in a worker's name is its place in their order.
            number = int(trial.user_attrs[record.WORKER].rpartition("/")[2])
            if number < len(workers):
                workers[number].suspend()
                self.frozen.add(workers[number].pid)
                self._later(partial(self._thaw, workers[number]), 1.2 * GRACE_PERIOD_S)
                return True
        return False

    def _training(self) -> list[FrozenTrial]:
        """Return the trials that run and have reported."""
        with suppress(StudyError, StorageError):  # there is no study yet
            trials = open_existing(NAME, self.url).study.get_trials(deepcopy=False)
            return [
                one
                for one in trials
                if one.state == TrialState.RUNNING and one.intermediate_values
            ]
        return []

    def _thaw(self, victim: psutil.Process) -> None:
        command = [sys.executable, "-m", "autotune.cli.main", "doctor", NAME]
        with (self.folder / "doctor.txt").open("a") as output:
            command += ["--storage", self.url, "--fix"]
            subprocess.run(command, stdout=output, stderr=output)
        with suppress(psutil.NoSuchProcess):
            victim.resume()
        self.frozen.discard(victim.pid)

    def _later(self, action: Callable[[], None], seconds: float) -> None:
        timer = threading.Timer(seconds, action)
        timer.start()
        self.passing.append(timer)

    def _restart(self, launcher: int) -> bool:
        local.stop(self.folder / "postgres")
        time.sleep(self.rng.uniform(0, 5))
        local.start(self.folder / "postgres")
        return True

    def _lock(self, seconds: float) -> bool:
        """Hold SQLite's write lock; before there is a database there is none."""
        if not database_path(self.url).exists():
            return False
        with closing(sqlite3.connect(database_path(self.url), timeout=60)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.rollback()
        return True

    def _fill(self, launcher: int) -> bool:
        """Keep the disk of the study's files full for a while; runs are started meanwhile."""
        if not self._training():
            return False
        thread = threading.Thread(target=fill, args=(self.files / "filler", FULL_S), name="fill")
        thread.start()
        self.passing.append(thread)
        return True


def fill(path: Path, seconds: float) -> None:
    """Take all space of a disk for a while, also what is freed meanwhile."""
    until = time.monotonic() + seconds
    with path.open("wb", buffering=0) as file:
        while time.monotonic() < until:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
            time.sleep(0.05)
    path.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small disk, where that is allowed; tell whether it is."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run(chaos: Chaos, workers: int, trials: int, pause_s: float) -> list[int]:
    """Run the study to its end, starting it again where the launcher gave up; return the codes."""
    command = [sys.executable, "-m", "autotune.cli.main", "run", "digits", *STUDY]
    command += [f"search.trials={trials}", f"files={chaos.files}"]
    command += ["--name", NAME, "--workers", str(workers)]
    environment = {**os.environ, "AUTOTUNE_STORAGE": chaos.url, "OMP_NUM_THREADS": "1"}
    codes: list[int] = []
    while not codes or (codes[-1] != 0 and len(codes) < STARTS):
        with output_of(chaos.folder, len(codes)).open("w") as output:
            launcher = subprocess.Popen(
                command, cwd=chaos.folder, env=environment, stdout=output, stderr=output
            )
            while launcher.poll() is None:
                time.sleep(chaos.rng.expovariate(1 / pause_s))
                if chaos.left and launcher.poll() is None:
                    chaos.strike(launcher.pid)
        codes.append(launcher.returncode)
    for one in chaos.passing:
        one.join()
    return codes


def output_of(folder: Path, start: int) -> Path:
    """Name the file with what a run said."""
    return folder / f"out-{start}.txt"


def bad_ends(folder: Path, codes: Sequence[int]) -> list[str]:
    """Say which runs ended in another way than with a result or a message.

    The message of a run whose workers died quotes a log, which may have tracebacks of its own.
    """
    found = []
    for start, code in enumerate(codes):
        said = output_of(folder, start).read_text(encoding="utf-8")
        before, message, _ = said.partition("\nerror: ")
        if code not in (0, 1, 2) or (code and not message) or "\nTraceback" in before:
            found.append(f"start {start} ended with code {code}:\n{said[-3000:]}")
    if codes[-1] != 0:
        found.append(f"the last of {len(codes)} starts ended with code {codes[-1]}")
    return found


def broken_files(files: Path, url: str) -> list[str]:
    """Say what a full disk or a kill has left that is half, or not wanted any more."""
    found = [f"left behind: {one}" for one in files.rglob("*.pt*") if one.is_file()]
    opened = open_existing(NAME, url)
    for trial in opened.study.get_trials(deepcopy=False):
        for meta in get_all_artifact_meta(trial, storage=opened.storage):
            path = opened.files.artifacts / meta.artifact_id
            try:
                if meta.filename.endswith(".safetensors"):
                    load_file(path)
                else:
                    Image.open(path).load()
            except Exception as error:
                found.append(f"{meta.filename} of trial {trial.number} is broken: {error}")
    command = [sys.executable, "-m", "autotune.cli.main", "doctor", NAME, "--storage", url]
    doctor = subprocess.run(command, capture_output=True, text=True)
    return found + ([f"the doctor says:\n{doctor.stdout}"] if doctor.returncode else [])


def woken(files: Path) -> int:
    """Count the workers that came back and dropped a trial that another one had been given."""
    logs = (one.read_text(errors="replace") for one in files.rglob("worker-*.log"))
    return sum(log.count("was given to another worker; dropped here") for log in logs)


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
    shutil.rmtree(opened.files.cache)  # no value may depend on how its features came to be
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
    parser.add_argument("--freezes", type=int, default=0, help="108 s each, at the beginning")
    parser.add_argument("--fills", type=int, default=0, help="of the disk of the files, 20 s each")
    parser.add_argument("--restarts", type=int, default=0, help="of the Postgres server")
    parser.add_argument("--locks", type=int, default=0, help="of SQLite, 20 to 30 s each")
    parser.add_argument("--long-locks", type=int, default=0, help="of SQLite, 108 s each")
    parser.add_argument("--pause", type=float, default=3.0, help="mean seconds between two")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    postgres = options.storage != "sqlite"
    # Not below a long path: that of a socket has at most 107 characters.
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as name,
        small_disk(Path(name) / "files") as mounted,
    ):
        folder = Path(name)
        url = f"sqlite:///{folder}/storage/chaos.db"
        if postgres:
            url = local.start(folder / "postgres")
        if options.fills and not mounted:
            print("no disk is filled: this machine lets this user mount none")
        left = Counter(
            {
                "kill": options.kills,
                "freeze": options.freezes,
                "fill": options.fills if mounted else 0,
                "restart": options.restarts if postgres else 0,
                "lock": 0 if postgres else options.locks,
                "long lock": 0 if postgres else options.long_locks,
            }
        )
        chaos = Chaos(url, folder, folder / "files", random.Random(options.seed), +left)
        start = time.perf_counter()
        try:
            codes = run(chaos, options.workers, options.trials, options.pause)
            took = time.perf_counter() - start
            found = [
                *bad_ends(folder, codes),
                *faults(url, options.trials),
                *broken_files(chaos.files, url),
            ]
        finally:
            if postgres:
                local.stop(folder / "postgres")
        for start_, code in enumerate(codes):
            if code:
                *_, last = output_of(folder, start_).read_text().strip().splitlines()
                print(f"start {start_} ended with code {code}: {last[:300]}")
        done = ", ".join(f"{count} x {kind}" for kind, count in chaos.done.items()) or "nothing"
        print(f"{options.storage}, {options.workers} workers, {options.trials} trials: {done}")
        print(f"{took:.0f} s; the launcher was started {len(codes)} times, exit codes {codes}")
        print(f"{woken(chaos.files)} workers came back and found their trial with another one")
        if (folder / "doctor.txt").exists():
            print("the doctor, before they did:\n" + (folder / "doctor.txt").read_text())
        if chaos.left:
            print(f"not done before the end: {dict(chaos.left)}")
        print("\n".join(found) if found else "no fault found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
