"""How many trials a second can workers share, and how long does a worker wait for one?

Worker processes with an objective that takes no time: 20 parameters drawn at random, 10 reports.
autotune's claims on SQLite and on Postgres; beside each the same with plain Optuna and
its documented settings, in the same run on the same machine. Every worker works for a fixed time;
a part of the trials was queued before. Then: how long does one worker wait for a trial in a study
of 1,000 finished trials?

    python benchmarks/storage_scale.py [--workers 1 8 32 64] [--seconds 15] [--rounds 3]
    python benchmarks/storage_scale.py --kinds Postgres --workers 32 --no-large-study

Both sides take turns, as often as there are rounds: what else a machine does meets both. A rate is
the median of its rounds, and the worst wait is that of all rounds.

The goals: three times the trials of plain Optuna on SQLite with 8 workers, one and a half times as
many on Postgres with 32 and no longer a wait at worst, no error and no trial run twice anywhere,
and less than 100 ms for a trial.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import optuna
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState
from reports import date_and_machine, write_report

from autotune.config.schema import StudyConfig
from autotune.config.validation import validate
from autotune.search.parameters.dimensions import suggest
from autotune.search.pruners import make_pruner
from autotune.search.samplers import make_sampler
from autotune.search.space import Space
from autotune.storage.admin import local_postgres
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.heartbeat import Heartbeat
from autotune.storage.url import absolute_url
from autotune.study.state import attrs
from autotune.study.state.trial_queue import Claim, TrialQueue

NAME = "scale"
EPOCHS = 10
#: The baseline and the known-good plans of a study.
QUEUED = 10


def make_config(sampler: str) -> StudyConfig:
    """Return a study of 20 parameters."""
    low = {"low": 0.0, "high": 0.5}
    values = {
        "dataset": "digits",
        "backbone": "resnet18",
        "space": {
            "trainable_layers": {"low": 0, "high": 10},
            "head": {
                "hidden_layers": {"low": 0, "high": 3},
                "units": [64, 128, 256],
                "dropout": low,
                "pool": ["keep", "max", "avgmax"],
                "batch_norm": [True, False],
                "activation": ["relu", "gelu"],
            },
            "training": {
                "optimizer": ["adamw", "sgd"],
                "lr": {"low": 1e-4, "high": 1e-1, "log": True},
                "layer_decay": {"low": 0.5, "high": 1.0},
                "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True},
                "label_smoothing": low,
                "mixup": low,
                "cutmix": low,
                "l2_sp": {"low": 0.0, "high": 0.1},
                "head_only_epochs": {"low": 0, "high": 3},
            },
        },
        "search": {"sampler": sampler, "pruner": "none", "trials": 10**6},
        "training": {"epochs": EPOCHS},
    }
    return validate(values, "benchmark")


@cache
def the_space() -> Space:
    """Return the space of the study: 20 parameters."""
    config = make_config("random")
    space = Space.from_config("resnet18", config.space, "weights", ())
    assert len(space.distributions) == 20, sorted(space.distributions)
    return space


# Workers


@dataclass(frozen=True)
class Side:
    """One way to share a study.

    Args:
        kind: The kind of its database.
        url: Where its workers find the study.
        ours: Whether they are autotune's.
    """

    kind: str
    url: str
    ours: bool

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{'autotune' if self.ours else 'Optuna'}, {self.kind}"


def plain_storage(url: str) -> optuna.storages.BaseStorage:
    """Open a storage as Optuna's documentation does.

    SQLite gets a longer timeout, a server a check before connections are used again and
    heartbeats: what the pages of ``RDBStorage`` and of SQLAlchemy's pools advise.
    """
    if url.startswith("sqlite"):
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 100}})
    return RDBStorage(
        url, engine_kwargs={"pool_pre_ping": True}, heartbeat_interval=60, grace_period=120
    )


def values_of(trial: Trial) -> Iterator[float]:
    rng = random.Random(trial.number)
    for _ in range(EPOCHS):
        yield rng.random()


def work_ours(side: Side, worker: str, seed: int, sampler: str) -> Callable[[], tuple[int, float]]:
    """Return what runs one trial as a worker of autotune does, and says how long it waited."""
    config = make_config(sampler)
    storage = open_storage(side.url)
    study = optuna.load_study(study_name=NAME, storage=storage)
    study.sampler = make_sampler(config, the_space(), seed)
    study.pruner = make_pruner("none", EPOCHS, 1)
    queue = TrialQueue(study, storage, absolute_url(side.url), the_space())

    def run() -> tuple[int, float]:
        start = time.perf_counter()
        claim = queue.claim(worker)
        assert isinstance(claim, Claim), claim
        waited = time.perf_counter() - start
        trial = claim.trial
        with Heartbeat(storage, trial._trial_id):
            for epoch, value in enumerate(values_of(trial), 1):
                trial.report(value, epoch)
                trial.should_prune()
        queue.finish(claim, TrialState.COMPLETE, value)
        return trial.number, waited

    return run


def work_plain(side: Side, seed: int, sampler: str) -> Callable[[], tuple[int, float]]:
    """Return what runs one trial as a user of Optuna would write it."""
    made = {"random": RandomSampler, "tpe": optuna.samplers.TPESampler}[sampler](seed=seed)
    study = optuna.load_study(study_name=NAME, storage=plain_storage(side.url), sampler=made)
    study.pruner = optuna.pruners.NopPruner()
    told: list[tuple[int, float]] = []
    start = 0.0

    def objective(trial: Trial) -> float:
        for name, distribution in the_space().distributions.items():
            suggest(trial, name, distribution)
        told.append((trial.number, time.perf_counter() - start))
        for epoch, value in enumerate(values_of(trial), 1):
            trial.report(value, epoch)
            trial.should_prune()
        return value

    def run() -> tuple[int, float]:
        nonlocal start
        start = time.perf_counter()
        study.optimize(objective, n_trials=1)
        return told.pop()

    return run


def be_worker(side: Side, index: int, seconds: float, parent: Connection) -> None:
    """Work for as long as the parent says, and tell it what came of it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if side.ours:
        run = work_ours(side, f"host/1/{index}", index, "random")
    else:
        run = work_plain(side, index, "random")
    parent.send("ready")
    parent.recv()
    end = time.monotonic() + seconds
    numbers, waits, errors = [], [], Counter[str]()
    while time.monotonic() < end:
        try:
            number, waited = run()
        except Exception as error:
            errors[" ".join(f"{type(error).__name__}: {error}".split())[:100]] += 1
        else:
            numbers.append(number)
            waits.append(waited)
    parent.send({"numbers": numbers, "waits": waits, "errors": errors})


# The run


@dataclass(frozen=True)
class Row:
    """What the workers of one side did.

    Args:
        side: The side.
        workers: How many there were.
        rate: Trials a second, all workers together.
        median_s: How long a worker waited for a trial: half of them less than so long.
        worst_s: The longest wait.
        errors: What was raised, with the number of times.
        twice: Trials that two workers ran.
    """

    side: Side
    workers: int
    rate: float
    median_s: float
    worst_s: float
    errors: Counter[str]
    twice: int


def new_study(url: str, ours: bool, queued: int) -> None:
    """Make a study, with some trials in its queue."""
    storage = open_storage(url, create=True) if ours else plain_storage(url)
    study = optuna.create_study(study_name=NAME, storage=storage, direction="maximize")
    study.set_user_attr(attrs.BUDGET, {"trials": 10**6})
    rng = random.Random(0)
    for _ in range(queued):
        number = rng.uniform(1e-4, 1e-1)
        study.enqueue_trial({"training.lr": number})


def measure(side: Side, workers: int, seconds: float) -> Row:
    """Let workers work for a while."""
    # Forked of a process that has imported everything: with many workers on few cores, importing
    # would take longer than what is measured.
    context = multiprocessing.get_context("forkserver")
    pipes = [context.Pipe() for _ in range(workers)]
    processes = [
        context.Process(target=be_worker, args=(side, index, seconds, theirs), daemon=True)
        for index, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        for ours, _ in pipes:
            assert ours.recv() == "ready"
        start = time.monotonic()
        for ours, _ in pipes:
            ours.send("go")
        answers = [ours.recv() for ours, _ in pipes]
        took = time.monotonic() - start
    finally:
        for process in processes:
            process.kill()
            process.join()
    numbers = Counter(number for answer in answers for number in answer["numbers"])
    waits = [waited for answer in answers for waited in answer["waits"]]
    errors = sum((Counter(answer["errors"]) for answer in answers), Counter[str]())
    return Row(
        side,
        workers,
        len(waits) / took,
        statistics.median(waits) if waits else float("nan"),
        max(waits, default=float("nan")),
        errors,
        sum(count > 1 for count in numbers.values()),
    )


class Databases:
    """Empty databases, one after the other.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._server = local_postgres.start(folder / "postgres")

    def fresh(self, kind: str) -> str:
        """Make an empty one and return its URL."""
        self._count += 1
        if kind == "sqlite":
            return f"sqlite:///{self._folder}/{self._count}.db"
        url = sqlalchemy.make_url(self._server).set(drivername="postgresql+psycopg")
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE scale_{self._count}")
        engine.dispose()
        return url.set(database=f"scale_{self._count}").render_as_string(hide_password=False)

    def side(self, kind: str, ours: bool, queued: int) -> Side:
        """Make a study somewhere and return where its workers find it."""
        url = self.fresh(kind.lower())
        new_study(url, ours, queued)
        return Side(kind, url, ours)

    def stop(self) -> None:
        """Stop the server."""
        local_postgres.stop(self._folder / "postgres")


KINDS = ("SQLite", "Postgres")


@dataclass(frozen=True)
class Wait:
    """How long one worker waits for a trial in a large study.

    Args:
        side: The side.
        sampler: What draws the parameters.
        median_s: Half of the waits are shorter.
        worst_s: The longest one.
    """

    side: Side
    sampler: str
    median_s: float
    worst_s: float


def wait_in_a_large_study(side: Side, sampler: str, finished: int, repeats: int) -> Wait:
    """Measure the wait in this process, after the trials that fill the study."""
    rng = random.Random(1)
    study = optuna.load_study(study_name=NAME, storage=open_storage(side.url))
    distributions = dict(the_space().distributions)
    filler = optuna.create_study(sampler=RandomSampler(seed=0), direction="maximize")
    for _ in range(finished):
        trial = filler.ask(distributions)
        for epoch in range(1, EPOCHS + 1):
            trial.report(rng.random(), epoch)
        if side.ours:
            trial.set_user_attr(attrs.PLAN, the_space().plan(trial.params).to_json())
        filler.tell(trial, rng.random())
    study.add_trials(filler.get_trials(deepcopy=False))
    run = work_ours(side, "host/1/0", 7, sampler) if side.ours else work_plain(side, 7, sampler)
    run()  # reads the study once
    waits = [run()[1] for _ in range(repeats)]
    return Wait(side, sampler, statistics.median(waits), max(waits))


def merged(rounds: Sequence[Row]) -> Row:
    """Return several rounds of one side as one: medians, and the worst of all."""
    return Row(
        rounds[0].side,
        rounds[0].workers,
        statistics.median(one.rate for one in rounds),
        statistics.median(one.median_s for one in rounds),
        max(one.worst_s for one in rounds),
        sum((one.errors for one in rounds), Counter[str]()),
        sum(one.twice for one in rounds),
    )


def ratios(rounds: Sequence[tuple[Row, Row]]) -> str:
    """Say how many times the trials of plain Optuna each round has brought."""
    found = [f"{ours.rate / plain.rate:.2f}" for ours, plain in rounds if plain.rate]
    return f"times the trials of Optuna, round by round: {', '.join(found)}"


def render(
    rows: Sequence[Row], waits: Sequence[Wait], seconds: float, finished: int, rounds: int
) -> str:
    """Write the report."""
    lines = [
        "# Many workers, one study",
        "",
        date_and_machine("optuna", "sqlalchemy", "psycopg"),
        "",
        f"Workers are processes, 20 parameters drawn at random, {EPOCHS} reports, no time for "
        f"training; each row is {rounds} times {seconds:g} s, in turn with the other side, on an "
        f"empty study with {QUEUED} queued trials (autotune begins a study with about as many). "
        "The wait is from asking to having a trial with all of its parameters. Both sides in one "
        "run, on one machine whose cores the workers share with the database.",
        "",
        "| storage | workers | autotune, trials/s | Optuna, trials/s | ratio "
        "| wait, median / worst | Optuna's | errors | Optuna's | run twice | Optuna's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    pairs = list(zip(rows[::2], rows[1::2], strict=True))  # of autotune, and of Optuna
    for ours, plain in sorted(pairs, key=lambda pair: KINDS.index(pair[0].side.kind)):
        ratio = f"{ours.rate / plain.rate:.1f}" if plain.rate else "-"
        lines.append(
            f"| {ours.side.kind} | {ours.workers} | {ours.rate:.1f} | {plain.rate:.1f} | {ratio} "
            f"| {_wait(ours)} | {_wait(plain)} | {ours.errors.total()} "
            f"| {plain.errors.total()} | {ours.twice} | {plain.twice} |"
        )
    found = {f"{row.side.name}: {words}" for row in rows for words in row.errors}
    lines += ["", "Errors:", "", *(f"- {one}" for one in sorted(found))] if found else []
    if not waits:
        return "\n".join(lines) + "\n"
    lines += [
        "",
        f"One worker in a study of {finished:,} finished trials:",
        "",
        "| storage | sampler | wait, median | worst |",
        "| --- | --- | --- | --- |",
        *(
            f"| {wait.side.name} | {wait.sampler} | {1000 * wait.median_s:.0f} ms "
            f"| {1000 * wait.worst_s:.0f} ms |"
            for wait in waits
        ),
    ]
    return "\n".join(lines) + "\n"


def _wait(row: Row) -> str:
    return f"{1000 * row.median_s:.0f} / {1000 * row.worst_s:.0f} ms"


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--finished", type=int, default=1000)
    parser.add_argument("--large-study", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    waits: list[Wait] = []
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        databases = Databases(Path(folder))
        try:
            for workers in options.workers:
                for kind in options.kinds:
                    rounds: list[tuple[Row, Row]] = []
                    for _ in range(options.rounds):
                        pair = []
                        for ours in (True, False):
                            side = databases.side(kind, ours, QUEUED)
                            pair.append(row := measure(side, workers, options.seconds))
                            print(
                                f"{side.name}, {workers} workers: {row.rate:.1f} trials/s, wait "
                                f"{_wait(row)}, {row.errors.total()} errors, {row.twice} run "
                                "twice",
                                flush=True,
                            )
                        rounds.append((pair[0], pair[1]))
                    print(ratios(rounds), flush=True)
                    rows += [merged([pair[at] for pair in rounds]) for at in (0, 1)]
            for kind in options.kinds if options.large_study else ():
                for sampler in ("random", "tpe"):
                    for ours in (True, False):
                        side = databases.side(kind, ours, 0)
                        found = wait_in_a_large_study(side, sampler, options.finished, 30)
                        waits.append(found)
                        print(
                            f"{side.name}, {sampler}: {1000 * found.median_s:.0f} ms", flush=True
                        )
        finally:
            databases.stop()
    text = render(rows, waits, options.seconds, options.finished, options.rounds)
    write_report(text, "storage-scale", options.output)
    print(text)


if __name__ == "__main__":
    main()
