"""How good are the searches? Studies of many seeds, simulated on real learning curves.

Random search, Optuna's TPE and GP as a user would write them (define by run, parameters only where
they have a meaning), and autotune's, one trial after the other and with eight workers; and rules
that end trials early, against none and against controls of the same cost. Nothing is trained:
`benchmarks/search_tables/` holds what every plan scores. What a study chooses is judged by the
test images. Writes a dated report with a plot under ``benchmarks/results/``.

    python benchmarks/search_quality.py                                     # all of it
    python benchmarks/search_quality.py --strategies tpe --seeds 10 --workers 1 \
        --rules 'none;median' --print                                       # a quick look

Simulated studies are kept in `storage/` until the code that searches changes.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import search_simulator
from reports import RESULTS, append_line, read_lines
from search_curves import TABLES, TASKS, Table
from search_figures import Group, Results, draw, render
from search_simulator import RULES, STRATEGIES, Course, Ours, Simulation

import autotune.search

HERE = Path(__file__).parent
STUDIES = HERE.parent / "storage" / "search_quality.files" / "studies.jsonl"


@dataclass(frozen=True)
class Case:
    """One simulated study.

    Args:
        task: The task of its table.
        strategy: Its name.
        rule: Name of the rule that ends trials.
        workers: How many train at the same time.
        trials: The budget.
        seed: Of the samplers.
        code: Digest of the table and of the code that searches.
    """

    task: str
    strategy: str
    rule: str
    workers: int
    trials: int
    seed: int
    code: str


@cache
def the_table(task: str) -> Table:
    return Table.load(task)


@cache
def digest(task: str, ours: bool) -> str:
    """Return what the outcome of a study depends on, besides its case."""
    folder = Path(autotune.search.__file__).parent
    paths = [TABLES / f"{task}.npz", Path(search_simulator.__file__), folder / "pruners.py"]
    found = hashlib.blake2b(digest_size=6)
    for path in [*paths, *(sorted(folder.glob("*.py")) if ours else [])]:
        found.update(path.read_bytes())
    return f"{found.hexdigest()}-optuna-{optuna.__version__}"


def cases(options: argparse.Namespace) -> list[Case]:
    """List the studies to simulate, seed by seed.

    Rivals have no pruner: what they save is not the question.
    """
    found = []
    for seed in range(options.seeds):
        for task in options.tasks:
            for workers in options.workers:
                for strategy in options.strategies:
                    if "gp" in strategy and seed >= options.gp_seeds:
                        continue
                    ours = isinstance(STRATEGIES[strategy](the_table(task).space, 1), Ours)
                    trials = options.random_trials if strategy == "random" else options.trials
                    for rule in options.rules if ours else ["none"]:
                        code = digest(task, ours)
                        found.append(Case(task, strategy, rule, workers, trials, seed, code))
    return found


def prepare_process() -> None:
    """Quieten Optuna and keep torch, in which the GP computes, on one thread."""
    import torch

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def simulate(case: Case) -> tuple[Case, Course]:
    """Simulate one study."""
    table = the_table(case.task)
    strategy = STRATEGIES[case.strategy](table.space, case.trials)
    rule = RULES[case.rule]
    simulation = Simulation(table, strategy, rule, case.workers, case.trials, case.seed)
    return case, simulation.run()


def read_studies() -> dict[Case, Course]:
    """Return the studies that have been simulated before."""
    return {Case(**case): Course(**course) for case, course in read_lines(STUDIES)}


def simulate_all(wanted: Sequence[Case], jobs: int) -> dict[Case, Course]:
    """Simulate the studies that are not in the file yet."""
    known = read_studies()
    missing = [case for case in wanted if case not in known]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    start = time.perf_counter()
    with context.Pool(jobs, prepare_process) as pool:
        for done, (case, course) in enumerate(pool.imap_unordered(simulate, missing), start=1):
            known[case] = course
            append_line(STUDIES, [asdict(case), asdict(course)])
            if done % 50 == 0:
                left_s = (time.perf_counter() - start) / done * (len(missing) - done)
                print(f"{done} of {len(missing)} studies, {left_s / 60:.1f} minutes to go")
    return {case: known[case] for case in wanted}


def names(choices: Sequence[str], separator: str = ",") -> Any:
    """Return a reader of names with a separator between them."""

    def read(text: str) -> list[str]:
        found = text.split(separator)
        if unknown := [one for one in found if one not in choices]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(choices)}")
        return found

    return read


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every, rules, tasks = list(STRATEGIES), list(RULES), list(TASKS)
    parser.add_argument("--tasks", type=names(tasks), default=tasks, metavar="A,B")
    parser.add_argument("--strategies", type=names(every), default=every, metavar="A,B")
    parser.add_argument("--rules", type=names(rules, ";"), default=rules, metavar="A;B")
    parser.add_argument(
        "--workers",
        type=lambda text: [int(one) for one in text.split(",")],
        default=[1, 8],
        metavar="1,8",
    )
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--gp-seeds", type=int, default=12, help="of the GP, which takes seconds")
    parser.add_argument("--trials", type=int, default=40, help="of a study with a model")
    parser.add_argument("--random-trials", type=int, default=100, help="of random search")
    parser.add_argument("--jobs", type=int, default=2, help="processes that simulate")
    parser.add_argument("--print", action="store_true", help="write no report")
    parser.add_argument("--output", type=Path, default=None, help="the report, ending in .md")
    return parser.parse_args()


def main() -> None:
    options = read_options()
    courses: dict[str, dict[tuple[str, str, int], list[Course]]] = {}
    for case, course in simulate_all(cases(options), options.jobs).items():
        of_task = courses.setdefault(case.task, defaultdict(list))
        of_task[case.strategy, case.rule, case.workers].append(course)
    results = {
        task: Results(
            the_table(task),
            {key: Group(the_table(task), own) for key, own in of_task.items()},
            options.trials,
            options.random_trials,
        )
        for task, of_task in courses.items()
    }
    text = render(results, options.seeds, min(options.seeds, options.gp_seeds))
    print(text)
    if options.print:
        return
    today = f"{datetime.now(UTC):%Y-%m-%d}-search-quality.md"
    output = options.output or RESULTS / today
    picture = output.with_suffix(".png")
    draw(results, picture)
    output.write_text(text + f"\n![What rules save and cost]({picture.name})\n", encoding="utf-8")


if __name__ == "__main__":
    main()
