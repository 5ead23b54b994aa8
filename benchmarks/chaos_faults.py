"""What benchmarks/chaos.py does to a study that runs."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from autotune.errors import AutotuneError, StorageError, StudyError
from autotune.storage.admin import local_postgres
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import GRACE_PERIOD_S, open_storage
from autotune.storage.rdb.study_lock import study_lock
from autotune.storage.url import database_path, is_sqlite
from autotune.study.setup.opening import open_existing

NAME = "chaos"
#: So long a disk is full.
FULL_S = 20.0
#: For how long a claim is held up, so that workers wait for it together.
HELD_UP_S = 1.5
#: What of the cache is removed: everything, or what a pattern names.
CACHE_PARTS = ("", "features", "record.json", "0", "*.lock")


@dataclass
class Chaos:
    """What is done to a study.

    Args:
        url: Its database.
        folder: Where the launcher runs, and the server's data are.
        files: Where the files of the study are.
        command: Starts a run of it.
        rng: Chooses moments and victims.
        left: How often each thing is still to be done.

    Attributes:
        done: How often each was done.
        frozen: Processes that are stopped now.
        passing: What ends by itself: freezes, full disks.
        launchers: All runs that were started; those that were killed are in ``killed``.
        spoiled: When checkpoints were spoiled, in nanoseconds, as their files have it.
    """

    url: str
    folder: Path
    files: Path
    command: Sequence[str]
    rng: random.Random
    left: Counter[str]
    done: Counter[str] = field(default_factory=Counter)
    frozen: set[int] = field(default_factory=set)
    passing: list[threading.Thread] = field(default_factory=list)
    launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    spoiled: set[int] = field(default_factory=set)

    def launch(self, *options: str) -> subprocess.Popen[bytes]:
        """Start a run of the study."""
        environment = {**os.environ, "AUTOTUNE_STORAGE": self.url, "OMP_NUM_THREADS": "1"}
        with self.output_of(len(self.launchers)).open("w") as output:
            started = subprocess.Popen(
                [*self.command, *options],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=output,
            )
        self.launchers.append(started)
        return started

    def output_of(self, start: int) -> Path:
        """Name the file with what a run said."""
        return self.folder / f"out-{start}.txt"

    def strike(self) -> None:
        """Do one of the things that are left; one that finds no victim is done later."""
        # Kills are many, and must not keep the others for the end, when the study may be over.
        weights = [min(count, 8) for count in self.left.values()]
        kind = self.rng.choices(list(self.left), weights)[0]
        if self.left["freeze"]:
            kind = "freeze"
        elif any(one.is_alive() for one in self.passing):
            # Longer things would hide what is going on, and too many kills leave nobody to go on.
            kind = "kill" if self.left["kill"] and self.rng.random() < 1 / 3 else ""
        doing: dict[str, Callable[[], bool]] = {
            "kill": partial(self._kill, 1),
            "pair": partial(self._kill, 2),
            "triple": partial(self._kill, 3),
            "claim": self._kill_at_claim,
            "cache": self._remove_cache,
            "corrupt": self._corrupt,
            "stale": self._put_back,
            "second": self._start_second,
            "launcher": self._kill_launcher,
            "freeze": self._freeze,
            "restart": self._restart,
            "crash": self._crash,
            "lock": lambda: self._lock(self.rng.uniform(20, 30)),
            # Longer than the busy timeout of 60 s, and than the grace period.
            "long lock": lambda: self._lock(1.2 * GRACE_PERIOD_S),
            "fill": self._fill,
        }
        if kind and doing[kind]():
            self.done[kind] += 1
            self.left[kind] -= 1
            self.left += Counter()  # drops what is at 0

    # Workers and launchers

    def _workers(self) -> list[psutil.Process]:
        """Return the workers of all launchers that are not frozen."""
        found = []
        for launcher in self.launchers:
            with suppress(psutil.NoSuchProcess):
                found += [
                    child
                    for child in psutil.Process(launcher.pid).children()
                    if "autotune.study.engine.worker_main" in child.cmdline()
                    and child.status() != "zombie"
                    and child.pid not in self.frozen
                ]
        return found

    def _kill(self, count: int) -> bool:
        """Kill this many workers at once."""
        workers = self._workers()
        if len(workers) < count:
            return False
        for one in self.rng.sample(workers, count):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        return True

    def _kill_at_claim(self) -> bool:
        """Hold up all claims for a moment, and kill workers as they come to theirs."""
        if not self._training() or not self._workers():
            return False
        storage = open_storage(self.url)
        with suppress(AutotuneError), study_lock(storage, self.url, NAME):
            time.sleep(HELD_UP_S)
        time.sleep(self.rng.uniform(0.0, 0.05))
        storage.engine.dispose()
        return self._kill(min(len(self._workers()), self.rng.choice((1, 2))))

    def _start_second(self) -> bool:
        """Start another launcher beside those that run."""
        if not self._training() or len(self._alive()) > 1:
            return False
        # One for each core: fewer would have more threads each, which round sums differently.
        self.launch("--workers", str(os.cpu_count() or 1))
        return True

    def _alive(self) -> list[int]:
        """Return the positions of the launchers that run."""
        return [at for at, launcher in enumerate(self.launchers) if launcher.poll() is None]

    def _kill_launcher(self) -> bool:
        """Kill a launcher; its workers see it and stop."""
        alive = self._alive()
        if not alive or not self._training():
            return False
        victim = self.rng.choice(alive)
        self.launchers[victim].kill()
        self.killed.add(victim)
        return True

    def _freeze(self) -> bool:
        """Stop a worker in a trial for longer than the grace period; the others go on."""
        workers = self._workers()
        if not workers or len(self._training()) < len(workers):
            return False
        victim = self.rng.choice(workers)
        victim.suspend()
        self.frozen.add(victim.pid)
        self._later(partial(self._thaw, victim), 1.2 * GRACE_PERIOD_S)
        return True

    def _training(self) -> list[FrozenTrial]:
        """Return the trials that run and have reported."""
        with suppress(StudyError, StorageError):  # there is no study yet
            trials = open_existing(NAME, self.url).study.get_trials(deepcopy=False)
            return [
                trial
                for trial in trials
                if trial.state == TrialState.RUNNING and trial.intermediate_values
            ]
        return []

    def _thaw(self, victim: psutil.Process) -> None:
        command = [sys.executable, "-m", "autotune", "doctor", NAME]
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

    # Files

    def _remove_cache(self) -> bool:
        """Remove the cache, or a part of it."""
        cache = StudyPaths(self.files).cache
        if not self._training() or not cache.is_dir():
            return False
        part = self.rng.choice(CACHE_PARTS)
        for path in [cache] if not part else list(cache.rglob(part)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return True

    def _corrupt(self) -> bool:
        """Flip a bit of a checkpoint, or cut it off, and kill those who wrote it."""
        kept = self._fresh_checkpoints()
        if not kept or not self._workers():
            return False
        path = self.rng.choice(kept)
        with suppress(FileNotFoundError):
            content = bytearray(path.read_bytes())
            bit = self.rng.randrange(8 * len(content))
            if self.rng.random() < 0.5:
                content[bit // 8] ^= 1 << bit % 8
            else:
                del content[bit // 8 :]
            for worker in self._workers():  # stopped first: a live one would write it anew
                with suppress(psutil.NoSuchProcess):
                    worker.suspend()
            path.write_bytes(content)
            self.spoiled.add(path.stat().st_mtime_ns)
        return self._kill(len(self._workers()))

    def _fresh_checkpoints(self) -> list[Path]:
        """Return the checkpoints of live trials that were written since they were spoiled."""
        kept = StudyPaths(self.files).checkpoints(NAME).glob("*.pt")
        found = []
        for one in kept:
            with suppress(FileNotFoundError):
                if one.stat().st_mtime_ns not in self.spoiled:
                    found.append(one)
        return found

    def _put_back(self) -> bool:
        """Put checkpoints of the deleted study in the place of those of live trials."""
        old = list((self.folder / "stale").glob("*.pt"))
        kept = self._fresh_checkpoints()
        if not old or not kept:
            return False
        for worker in self._workers():
            with suppress(psutil.NoSuchProcess):
                worker.suspend()
        for path in kept:
            shutil.copy(self.rng.choice(old), path)
            self.spoiled.add(path.stat().st_mtime_ns)
        return self._kill(len(self._workers()))

    def _fill(self) -> bool:
        """Keep the disk of the study's files full for a while; runs are started meanwhile."""
        if not self._training():
            return False
        thread = threading.Thread(target=fill, args=(self.files / "filler", FULL_S), name="fill")
        thread.start()
        self.passing.append(thread)
        return True

    # Databases

    def _restart(self) -> bool:
        local_postgres.stop(self.folder / "postgres")
        time.sleep(self.rng.uniform(0, 5))
        local_postgres.start(self.folder / "postgres")
        return True

    def _crash(self) -> bool:
        """End the server without its own checkpoint: it recovers when it starts."""
        pid = int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])
        server = psutil.Process(pid)
        server.send_signal(signal.SIGQUIT)
        server.wait(60)
        time.sleep(self.rng.uniform(0, 5))
        local_postgres.start(self.folder / "postgres")
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

    # A study before the study

    def delete_another(self, *definition: str) -> None:
        """Run a study of the same name with another definition, kill and delete it.

        Its checkpoints stay where they were, and copies of them for :meth:`_put_back`.
        """
        launcher = self.launch("--workers", "2", *definition)
        kept = StudyPaths(self.files).checkpoints(NAME)
        while launcher.poll() is None and not list(kept.glob("*.pt")):
            time.sleep(0.2)
        self.killed.add(len(self.launchers) - 1)
        for one in [*self._workers(), psutil.Process(launcher.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        launcher.wait()
        (self.folder / "stale").mkdir(exist_ok=True)
        for path in kept.glob("*.pt"):
            shutil.copy(path, self.folder / "stale" / f"{self.done['remake']}-{path.name}")
        optuna.delete_study(study_name=NAME, storage=open_storage(self.url))
        self.done["remake"] += 1
        self.left["remake"] -= 1
        self.left += Counter()


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


def of_storage(url: str, wanted: Counter[str]) -> Counter[str]:
    """Keep what can be done to a storage of this kind."""
    others = ("restart", "crash") if is_sqlite(url) else ("lock", "long lock")
    return +Counter({kind: count for kind, count in wanted.items() if kind not in others})
