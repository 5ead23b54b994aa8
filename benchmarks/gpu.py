"""The check on a GPU: is it right, is it fast? Two halves of at most six minutes.

    python benchmarks/gpu.py --half 1       # environment, tests, split, precision, throughput
    python benchmarks/gpu.py --half 2       # features, two workers, memory, naive study, fit
    python benchmarks/gpu.py --steps split precision
    python benchmarks/gpu.py --dry          # both halves on a simulated GPU, with small sizes
    python benchmarks/gpu.py --report       # the report once more, from the lines that are there

Everything is made here: images are noise, weights random; nothing is fetched. Each step runs in
its own process, which is ended when its time is up, and the next one begins. Results are
lines of JSON, written at once to ``benchmarks/results/DATE-gpu-half-N.jsonl``; the report of all
lines of that day is ``benchmarks/results/DATE-gpu.md``. A dry run measures nothing on a GPU: its
lines and its report go to ``storage/gpu-dry/``, and say so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from gpu_report import render
from gpu_steps.context import DRY, ENDED, REAL, STARTED, Context, now
from gpu_steps.material import make_images
from gpu_steps.plan import DRY_LIMIT_S, HALF_S, STEPS, Step, step_named, steps_of
from reports import RESULTS, append_line, read_lines

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DRY_RESULTS = ROOT / "storage" / "gpu-dry"
#: For how long a step that is asked to end may take to do so.
_GRACE_S = 5.0


def run_step(context: Context, command: Sequence[str]) -> str:
    """Run a step in its own process, and write down when it began and how it ended.

    Args:
        context: What it is given.
        command: The process, to which the context is added as an argument.

    Returns:
        ``ok``, ``failed`` or ``timed out``.
    """
    note = {"step": context.step, "dry": context.dry}
    append_line(context.lines, {**note, "kind": STARTED, "time": now()})
    start = time.monotonic()
    log = context.folder.parent / f"{context.step}.log"
    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*command, context.to_json()],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=context.limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    ended = "timed out" if code is None else "failed" if code else "ok"
    said = log.read_text(encoding="utf-8", errors="replace")
    append_line(
        context.lines,
        {
            **note,
            "kind": ENDED,
            "time": now(),
            "ended": ended,
            "seconds": round(time.monotonic() - start, 1),
            "limit_s": round(context.limit_s, 1),
            "said": "" if ended == "ok" else said[-3000:],
        },
    )
    return ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step and all that it has started: a worker that hangs would keep the GPU."""
    started = _descendants(process.pid)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_GRACE_S)
    # Workers of a launcher have sessions of their own, and end by themselves when it is gone.
    until = time.monotonic() + _GRACE_S
    while any(_is_alive(one) for one in started) and time.monotonic() < until:
        time.sleep(0.1)
    for one in (process.pid, *filter(_is_alive, started)):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    """Return the processes that one has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def be_step(text: str) -> None:
    """Do the work of a step: this is what its process runs."""
    context = Context.from_json(text)
    module, function = step_named(context.step).place.split(".")
    from gpu_steps.device import gpu_of_step

    with gpu_of_step(context.dry) as gpu:
        work = getattr(import_module(f"gpu_steps.{module}"), function)
        work(context.on(gpu))


def run_half(half: int, steps: Sequence[Step], dry: bool, results: Path) -> list[str]:
    """Run the steps of a half, within its time; return how each ended."""
    file = results / f"{datetime.now(UTC):%Y-%m-%d}-gpu-half-{half}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + (DRY_LIMIT_S * len(steps) if dry else HALF_S)
    endings = []
    with tempfile.TemporaryDirectory(prefix="autotune-gpu-") as name:
        folder = Path(name)
        images = make_images(folder / "images", DRY if dry else REAL)
        for step in steps:
            left = until - time.monotonic() - _GRACE_S
            limit = min(left, DRY_LIMIT_S if dry else step.limit_s)
            if limit <= 0:
                endings.append("no time left")
                print(f"{step.name}: no time left", flush=True)
                continue
            home = folder / step.name
            home.mkdir()
            context = Context(step.name, dry, file, images, home, limit)
            start = time.monotonic()
            command = [sys.executable, str(HERE / "gpu.py"), "--context"]
            endings.append(run_step(context, command))
            print(f"{step.name}: {endings[-1]}, {time.monotonic() - start:.1f} s", flush=True)
            shutil.rmtree(home)
    return endings


def write_report(results: Path, date: str) -> Path | None:
    """Write the report of the lines of a day; ``None`` where there are none."""
    files = sorted(results.glob(f"{date}-gpu-half-*.jsonl"))
    if not files:
        return None
    report = results / f"{date}-gpu.md"
    lines = [line for file in files for line in read_lines(file)]
    report.write_text(render(lines, date), encoding="utf-8")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--half", type=int, choices=[1, 2], help="by default both")
    what.add_argument("--steps", nargs="+", choices=[step.name for step in STEPS])
    what.add_argument("--report", action="store_true", help="measure nothing, write the report")
    what.add_argument("--context", help=argparse.SUPPRESS)  # how a step's process is told
    parser.add_argument("--dry", action="store_true", help="on a simulated GPU, small sizes")
    parser.add_argument("--results", type=Path, help="folder of lines and report")
    parser.add_argument("--date", help="of --report; by default today")
    options = parser.parse_args()
    if options.context is not None:
        be_step(options.context)
        return 0
    results = options.results or (DRY_RESULTS if options.dry else RESULTS)
    endings: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the step as well
    if not options.report:
        chosen = [step_named(name) for name in options.steps or ()]
        for half in (1, 2):
            steps = [step for step in chosen or steps_of(options.half) if step.half == half]
            if steps:
                endings += run_half(half, steps, options.dry, results)
    report = write_report(results, options.date or f"{datetime.now(UTC):%Y-%m-%d}")
    if report is None:
        parser.error(f"--report: {results} has no lines of that day; give --date or --results")
    print(report.read_text(encoding="utf-8"))
    print(report)
    return int(any(ending != "ok" for ending in endings))


if __name__ == "__main__":
    sys.exit(main())
