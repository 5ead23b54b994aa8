"""How long does one wait for the dashboard of a study of 2,000 trials?

Trials as real ones leave them behind (21 parameters, 10 reports, attributes, references to
pictures), without training, in SQLite. Four dashboards of them in headless Chromium, one after the
other on one machine, each a process that starts for it, and that twice; the shorter wait counts:

- plain: optuna-dashboard alone; no notes, attributes as they are stored
- stored: the same with a note of every trial in the database, as ``save_note`` keeps them
- autotune: ``autotune dashboard``, which makes notes when they are asked for
- few: ``autotune dashboard`` on a twentieth of the trials

    python benchmarks/dashboard_scale.py [--trials 2000] [--rounds 2]

Without a browser: what ``autotune status``, the report and the first answer of the dashboard take,
each in its own process, in turn with the same on a twentieth of the trials and with
optuna-dashboard alone. CPU seconds tell more than wall seconds where a machine is busy.

    python benchmarks/dashboard_scale.py --reading --trials 5000 [--rounds 3] [--storage URL]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.util import setup_testing_defaults

import numpy as np
import sqlalchemy
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages._rdb.models import StudySystemAttributeModel
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import wsgi
from optuna_dashboard._note import note_ver_key, split_body
from reports import date_and_machine
from rich.console import Console

from autotune.config.loading import apply_overrides, presets, read_yaml
from autotune.config.validation import validate
from autotune.results.dashboard.notes import study_note, trial_note
from autotune.results.study_results import StudyResults
from autotune.search.space import Space
from autotune.storage.admin.study_rows import Row, StudyRows, read_study, write_study
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.retry import RetryingStorage
from autotune.study.setup.opening import OpenStudy, open_existing
from autotune.study.state import attrs
from autotune.study.state.predictions import ImagePrediction
from autotune.study.trial.plots import draw_confusion, draw_curve, draw_worst
from studies import open_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAME, EPOCHS = "scale", 10
#: So often the trials of a small study are repeated: one by one, 2,000 take minutes to write.
REPEATED = 20
#: For so long one waits for anything on a page.
PATIENCE_S = 90.0


# The study


def make_study(folder: Path, trials: int) -> OpenStudy:
    """Make a study: two thirds complete, one third pruned; those of its start stay queued."""
    url = f"sqlite:///{folder}/study.db"
    given = {"name": NAME, "storage": url, "training.epochs": EPOCHS, "search.trials": trials}
    config = validate(apply_overrides(read_yaml(presets()["digits"]), given), "benchmark")
    opened = open_study(config)
    references = draw_pictures(opened)
    space = Space.from_json(opened.study.user_attrs[attrs.SPACE])
    rng = np.random.default_rng(0)
    numbers = range(trials)
    opened.study.add_trials([make_trial(number, space, references, rng) for number in numbers])
    return opened


def repeat(opened: OpenStudy, folder: Path, times: int, url: str = "") -> str:
    """Write the finished trials of a study several times over, at once; return the new URL.

    The browser asks for all trials from the first unfinished one on, every ten seconds: with one
    left in the queue it would never be done.
    """
    with opened.storage.engine.connect() as connection:
        once = read_study(connection, NAME)
    finished = [row for row in once.trials if row["state"].is_finished()]
    first, highest = finished[0]["number"], finished[-1]["trial_id"] + 1
    ids = {row["trial_id"] for row in finished}

    def moved(row: Row, time: int) -> Row:
        changed = {"trial_id": row["trial_id"] + time * highest}
        if "number" in row:
            changed["number"] = row["number"] - first + time * len(finished)
        return {**row, **changed}

    parts = {
        name: [moved(row, time) for time in range(times) for row in rows if row["trial_id"] in ids]
        if rows and "trial_id" in rows[0]
        else rows
        for name, rows in once.parts.items()
    }
    trials = [moved(row, time) for time in range(times) for row in finished]
    url = url or f"sqlite:///{folder}/study.db"
    storage = open_storage(url, create=True)
    assert isinstance(storage, RetryingStorage)
    write_study(storage.engine, StudyRows(NAME, trials, parts))
    return url


def draw_pictures(opened: OpenStudy) -> dict[str, str]:
    """Draw the pictures of one trial, and return the references that all trials have to them."""
    folder = opened.files.artifacts
    folder.mkdir(parents=True, exist_ok=True)
    classes = [str(number) for number in range(10)]
    view = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    worst = [
        ImagePrediction(f"{i}.png", classes[i % 10], 3.0, 0.05, ((classes[(i + 1) % 10], 0.9),))
        for i in range(16)
    ]
    with tempfile.TemporaryDirectory() as made:
        curve = {epoch: epoch / EPOCHS for epoch in range(1, EPOCHS + 1)}
        pictures = [
            draw_curve(Path(made), curve, "accuracy", {}),
            draw_confusion(Path(made), np.eye(10, dtype=np.int64) * 50, classes),
            draw_worst(Path(made), worst, [view] * 16),
        ]
        found = {}
        for path in pictures:
            name = str(uuid.uuid4())
            shutil.copyfile(path, folder / name)
            kind = "image/jpeg" if path.suffix == ".jpg" else "image/png"
            about = {"artifact_id": name, "filename": path.name}
            found[f"artifacts:{name}"] = json.dumps(about | {"mimetype": kind, "encoding": None})
    return found


def make_trial(
    number: int, space: Space, references: dict[str, str], rng: np.random.Generator
) -> FrozenTrial:
    """Make a trial as one of a real study is left behind."""
    drawn = {name: draw(distribution, rng) for name, distribution in space.distributions.items()}
    params = space.canonical(drawn)
    if number == 0:
        params = space.params(space.baseline()) or params
    plan = space.plan(params)
    pruned = number % 3 == 2
    epochs = int(rng.integers(1, EPOCHS)) if pruned else EPOCHS
    final = 0.8 + 0.02 * plan.depth + float(rng.normal(0, 0.02))
    curve = {epoch: final * (1 - 0.5**epoch) for epoch in range(1, epochs + 1)}
    value = curve[epochs]
    metrics = {"accuracy": value, "balanced_accuracy": value - 0.003}
    metrics |= {"macro_f1": value - 0.004, "log_loss": 2 * (1 - value)}
    trial = create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=value,
        params=params,
        distributions=dict(space.distributions),
        user_attrs={
            attrs.PLAN: plan.to_json(),
            **({attrs.ROLE: attrs.BASELINE} if number == 0 else {}),
            attrs.CLAIMED_AT: 1.8e9 + 10 * number,
            attrs.WORKER: f"machine/4711/{number % 8}",
            attrs.DEVICE: "NVIDIA H200",
            attrs.TRAINABLE_PARAMETERS: 970 + 61_000 * plan.depth,
            attrs.COSTS: {"parameters": 373_658},
            attrs.SECONDS: 1.25 * epochs,
            attrs.EPOCHS: epochs,
            attrs.METRICS: metrics,
            attrs.PEAK_MEMORY_MB: 512.5,
            attrs.DEVICE_MEMORY_MB: 143_771.0,
            attrs.DEVICE_SECONDS: 9.875123,
        },
        system_attrs=dict(list(references.items())[: 1 if pruned else None]),
        intermediate_values=curve,
    )
    trial.datetime_start = datetime(2026, 11, 1) + timedelta(seconds=10 * number)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=9)
    return trial


def draw(found: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw a value of a parameter, as the database would give it back."""
    if isinstance(found, CategoricalDistribution):
        return found.choices[int(rng.integers(len(found.choices)))]
    low, high = float(found.low), float(found.high)  # type: ignore[attr-defined]
    if found.log:  # type: ignore[attr-defined]
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))
    if (step := found.step) is not None:  # type: ignore[attr-defined]
        return type(step)(low + step * int(rng.integers(round((high - low) / step) + 1)))
    return float(rng.uniform(low, high))


def store_notes(opened: OpenStudy) -> None:
    """Write the notes into the database, as ``save_note`` does, but in one transaction."""
    study, results = opened.study, StudyResults.from_study(opened.study)
    bodies: dict[int | None, str] = {None: study_note(results, opened.url)}
    for trial in study.get_trials(deepcopy=False):
        bodies[trial._trial_id] = trial_note(trial, results)
    rows = [
        {"study_id": study._study_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, body in bodies.items()
        for key, value in {note_ver_key(trial_id): 1, **split_body(body, trial_id)}.items()
    ]
    with opened.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.insert(StudySystemAttributeModel), rows)


# The dashboards


class Quiet(WSGIRequestHandler):
    """Says nothing of requests."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def serve_plain(url: str) -> None:
    """Serve optuna-dashboard as it is, on a port that the system chooses."""
    opened = open_existing(NAME, url)
    app = wsgi(opened.storage, artifact_store=opened.artifacts)
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        page = f"/dashboard/studies/{opened.study._study_id}"
        print(f"http://127.0.0.1:{server.server_port}{page}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


@contextmanager
def served(url: str, plain: bool, port: int) -> Iterator[str]:
    """Start a dashboard as a process, and give the address of the study's page."""
    ours = ("-m", "autotune", "dashboard", NAME, "--storage", url, "--port", str(port))
    arguments = (__file__, "--serve", url) if plain else ours
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, "the dashboard did not start"
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=30)


# What one waits for


@dataclass(frozen=True)
class Waits:
    """What a dashboard needs.

    Args:
        name: Which one.
        trials: Trials of its study.
        megabytes: JSON that the page of the study asks for.
        first_s: Seconds for that JSON, the first time.
        again_s: For the last ten trials, 11 s later: the page asks every 10 s for those from the
            first unfinished one on.
        history_s: From asking for the page until its history is drawn.
        importances_s: Until the importances are drawn too.
        trial_s: From asking for a trial's page until its list, note and pictures are there.
        scroll_s: Until the last trial of the list is there, once one scrolls to it.
    """

    name: str
    trials: int
    megabytes: float
    first_s: float
    again_s: float
    history_s: float
    importances_s: float
    trial_s: float
    scroll_s: float


def measure(browser: Browser, name: str, url: str, plain: bool, port: int, trials: int) -> Waits:
    """Look at one dashboard, in its own process, with its own page."""
    with served(url, plain, port) as address:
        base, study = re.fullmatch(r"(http://[^/]+)/dashboard/studies/(\d+)", address).groups()  # type: ignore[union-attr]
        question = f"{base}/api/studies/{study}?after="
        size, first_s = fetch(f"{question}0")
        drawn = look_at_study(browser, address)
        looked = look_at_trial(browser, address, trials, name == "plain")
        time.sleep(11)
        _, again_s = fetch(f"{question}{trials - 10}")
    return Waits(name, trials, size / 1e6, first_s, again_s, *drawn, *looked)


def best(rounds: Sequence[Waits]) -> Waits:
    """Take the shortest of several waits: what else a machine does makes them longer."""
    times = {
        field.name: min(getattr(each, field.name) for each in rounds)
        for field in fields(Waits)
        if field.name.endswith("_s")
    }
    return replace(rounds[0], **times)


def fetch(url: str) -> tuple[int, float]:
    """Return how many bytes an answer has, and the seconds that it took."""
    start = time.perf_counter()
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        size = len(answer.read())
    return size, time.perf_counter() - start


def look_at_study(browser: Browser, address: str) -> tuple[float, float]:
    """Return the seconds until the history and the importances are drawn."""
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    start = time.perf_counter()
    page.goto(address)
    history = until(page, "document.querySelector('#plot-history .scatterlayer path.point')")
    bars = "document.querySelector('#graph-hyperparameter-importances .barlayer .point')"
    importances = until(page, bars)
    page.close()
    return history - start, importances - start


def look_at_trial(browser: Browser, address: str, trials: int, bare: bool) -> tuple[float, float]:
    """Return the seconds until a trial is all there, and until one can scroll to the last."""
    number = trials // 2 // 3 * 3  # complete
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    start = time.perf_counter()
    page.goto(f"{address}/trials?numbers={number}")
    picture = "[...document.images].filter(one => one.src.includes('/artifacts/'))"
    pictures = f"{picture}.length >= 3 && {picture}.every(one => one.naturalWidth)"
    note = "document.body.innerText.includes('■ head')"
    there = until(page, pictures if bare else f"{note} && {pictures}")
    begun = time.perf_counter()
    page.mouse.move(150, 600)
    last = f"document.body.innerText.includes('Trial {trials - 1}')"
    while not page.evaluate(last) and time.perf_counter() - begun < PATIENCE_S:
        page.mouse.wheel(0, 100_000)
        page.wait_for_timeout(20)
    scrolled = until(page, last)
    page.close()
    return there - start, scrolled - begun


def until(page: Page, condition: str) -> float:
    """Wait for a condition, and return when it came true."""
    end = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < end:
        if page.evaluate(f"!!({condition})"):
            return time.perf_counter()
        page.wait_for_timeout(20)
    raise TimeoutError(f"never came true: {condition}")


# Reading without a browser


READERS = ("status", "report", "answer", "plain answer")


def read(what: str, url: str) -> None:
    """Read a study in one way, and print what that took; the imports come before."""
    from autotune.display.summary import print_summary, print_workers
    from autotune.results.dashboard.annotations import annotated_app
    from autotune.results.report.html import render_html

    statements: list[object] = []
    sqlalchemy.event.listen(
        sqlalchemy.Engine, "before_cursor_execute", lambda *told: statements.append(told[2])
    )
    wall, cpu = time.perf_counter(), time.process_time()
    opened = open_existing(NAME, url)
    if what == "status":
        console = Console(file=io.StringIO(), width=120)
        print_workers(console, opened)
        print_summary(console, opened, trained=True)
        size = 0
    elif what == "report":
        size = len(render_html(StudyResults.from_study(opened.study), url).encode())
    else:
        storage, environ = opened.study._storage, {}
        made = (
            wsgi(opened.storage, artifact_store=opened.artifacts)
            if what == "plain answer"
            else annotated_app(storage, opened.artifacts, url)
        )
        setup_testing_defaults(environ)
        environ["PATH_INFO"] = f"/api/studies/{opened.study._study_id}"
        size = sum(len(part) for part in made(environ, lambda *told: None))
    took = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    print(json.dumps({**took, "bytes": size, "statements": len(statements)}))


def measure_reading(urls: dict[str, str], rounds: int) -> str:
    """Return a table of what reading takes; the shortest times of some rounds."""
    lines = [
        "| | trials | CPU, s | wall, s | MB | statements |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for trials, url in urls.items():
            for what in READERS:
                command = [sys.executable, __file__, "--read", what, "--storage", url]
                answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                told = json.loads(answer.stdout.splitlines()[-1])
                found.setdefault((what, trials), []).append(told)
    for (what, trials), told in sorted(found.items()):
        cpu, wall = (min(one[name] for one in told) for name in ("cpu_s", "wall_s"))
        size, statements = told[0]["bytes"] / 1e6, told[0]["statements"]
        lines.append(
            f"| {what} | {trials} | {cpu:.2f} | {wall:.2f} | {size:.2f} | {statements:.0f} |"
        )
    return "\n".join(lines)


# The report


#: Title, field of the waits, and decimals.
_ROWS = (
    ("JSON of the study, MB", "megabytes", 1),
    ("that JSON from a new process, s", "first_s", 2),
    ("looking again for the last 10, 11 s later, s", "again_s", 2),
    ("page until the history is drawn, s", "history_s", 2),
    ("page until the importances are drawn, s", "importances_s", 2),
    ("page of a trial with note and pictures, s", "trial_s", 2),
    ("scrolling to the last trial, s", "scroll_s", 2),
)


def report(found: Sequence[Waits]) -> str:
    """Write the figures as a table, each beside those of optuna-dashboard alone."""
    names = [f"{one.name} ({one.trials:,})" for one in found]
    lines = [
        f"| | {' | '.join(names)} | autotune / plain | autotune / stored |",
        "| --- " * (len(found) + 3) + "|",
    ]
    for title, field, digits in _ROWS:
        values = {one.name: getattr(one, field) for one in found}
        cells = [f"{value:.{digits}f}" for value in values.values()]
        cells += [f"{values['autotune'] / values[other]:.2f}" for other in ("plain", "stored")]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Make the studies, look at their dashboards, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--port", type=int, default=8471)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--reading", action="store_true")
    parser.add_argument("--storage", default="", help="where the study is made; else in SQLite")
    parser.add_argument("--read", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve_plain(arguments.serve)
    if arguments.read:
        return read(arguments.read, arguments.storage)
    if arguments.reading:
        with tempfile.TemporaryDirectory() as folder:
            few, many = arguments.trials // REPEATED, arguments.trials
            made = make_study(Path(folder), few)
            (Path(folder) / "many").mkdir()
            urls = {f"{many:,}": repeat(made, Path(folder) / "many", REPEATED, arguments.storage)}
            urls[f"{few:,}"] = made.url
            print(measure_reading(urls, arguments.rounds))
        return None
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        urls = {}
        made = make_study(Path(folder), arguments.trials // REPEATED)
        for name, times in (("few", 1), ("plain", REPEATED), ("stored", REPEATED)):
            (Path(folder) / name).mkdir()
            urls[name] = repeat(made, Path(folder) / name, times)
        urls["autotune"] = urls["plain"]
        store_notes(open_existing(NAME, urls["stored"]))
        executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
            names = ("plain", "stored", "autotune", "few")
            rounds: dict[str, list[Waits]] = {name: [] for name in names}
            for name in names * arguments.rounds:
                trials = arguments.trials // REPEATED if name == "few" else arguments.trials
                plain = name in ("plain", "stored")
                one = measure(browser, name, urls[name], plain, arguments.port, trials)
                rounds[name].append(one)
                print(one, flush=True)
            version = browser.version
            browser.close()
    text = f"# The dashboard of many trials\n\n{date_and_machine('optuna', 'optuna-dashboard')}"
    text += f" Chromium {version}, headless. {arguments.rounds} rounds, the shortest waits; "
    text += f"load of the machine at the end: {os.getloadavg()[1]:.1f}.\n\n"
    text += f"{report([best(one) for one in rounds.values()])}\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
