"""The report of gpu.py, made of its lines alone: goals with verdicts, then every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gpu_steps.context import ENDED, STARTED
from gpu_steps.plan import STEPS

Line = dict[str, Any]

#: A tail that reads features from the device, against one resident batch.
TAIL_GOAL = 0.95
#: A share above this is no speed but noise.
TAIL_MOST = 1.05
#: How many times as fast as naive, over the list.
NAIVE_GOAL = 10.0
#: Relative differences between split and whole, by precision: half precision keeps 8 bits.
SPLIT_LIMITS = {"off": 1e-3, "bf16": 2e-2}
#: Relative difference between features of the GPU and of the CPU.
CPU_LIMIT = 2e-2
REACHED, MISSED, UNKNOWN = "reached", "MISSED", "not measured"
_SIMULATED = "simulated"


def render(lines: Sequence[Line], date: str) -> str:
    """Write the report of the last run of each step."""
    runs = last_runs(lines)
    dry = any(line.get("dry") for line in lines)
    parts = ["# Check on a GPU", "", *_heading(runs, date, dry), "", "## Goals", ""]
    parts += ["| goal | found | verdict |", "| --- | --- | --- |"]
    for title, found, verdict in goals(runs):
        parts.append(f"| {title} | {found} | {f'{_SIMULATED}: no verdict' if dry else verdict} |")
    parts += ["", "## Steps", "", "| step | half | ended | seconds | limit |"]
    parts += ["| --- | --- | --- | --- | --- |"]
    for step in STEPS:
        end = _end_of(runs.get(step.name, []))
        parts.append(
            f"| {step.name} | {step.half} | {end.get('ended', 'not run')} | "
            f"{_number(end.get('seconds'), 1)} | {_number(end.get('limit_s'), 0)} |"
        )
    for step in STEPS:
        if step.name not in runs:
            continue
        parts += ["", f"## {step.title}", *_section(step.name, runs[step.name])]
        end = _end_of(runs[step.name])
        if end.get("ended") not in ("ok", None):
            parts += ["", f"The step {end['ended']}. The end of what it said:", ""]
            parts += ["```", *str(end["said"]).strip().splitlines()[-15:], "```"]
    return "\n".join(parts) + "\n"


def last_runs(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Return the lines of the last run of each step."""
    runs: dict[str, list[Line]] = {}
    for line in lines:
        if line["kind"] == STARTED:
            runs[line["step"]] = []
        runs.setdefault(line["step"], []).append(line)
    return runs


def goals(runs: dict[str, list[Line]]) -> list[tuple[str, str, str]]:
    """Hold what was measured against the goals; return title, what was found, and verdict."""
    tails = _of(runs, "throughput", "tail")
    ratios, memory = _of(runs, "naive", "ratio"), _of(runs, "memory", "memory")
    limits = ", ".join(f"{limit:g} in {mode}" for mode, limit in SPLIT_LIMITS.items())
    judged: list[tuple[str, Sequence[Line], Callable[[Sequence[Line]], tuple[str, str]]]] = [
        (
            f"a training on what lies on the GPU: at least {TAIL_GOAL:g} of one resident batch",
            [tail for tail in tails if tail["way"] == "resident"],
            _judge_tails,
        ),
        *(
            (
                f"the list of plans, {side}: {NAIVE_GOAL:g} times as fast as naive",
                [ratio for ratio in ratios if ratio["side"] == side],
                _judge_naive,
            )
            for side in ("cold", "warm")
        ),
        ("the host waits for the GPU in no step", tails, partial(_judge_none, "waits")),
        (
            "no step copies from memory that is not pinned",
            tails,
            partial(_judge_none, "pageable"),
        ),
        (
            f"split and whole differ by at most {limits}; features on GPU and CPU by "
            f"{CPU_LIMIT:g}",
            _of(runs, "split", "split"),
            _judge_splits,
        ),
        (
            "all tests with the marker `gpu` pass",
            _of(runs, "tests", "test"),
            partial(_judge_tests, bool(_of(runs, "tests", "tests"))),
        ),
        (
            "no trial fails with two workers on the GPU",
            [line for line in _of(runs, "workers", "workers") if line["workers"] == 2],
            _judge_workers,
        ),
        (
            "with too little memory, trials end in smaller parts",
            [line for line in memory if line["case"] == "little"],
            _judge_little,
        ),
        (
            "after a neighbor has left, trials end in whole batches",
            [line for line in memory if line["case"] == "crowded"],
            _judge_crowded,
        ),
        (
            "a worker whose GPU is not there refuses, and trains nothing",
            _of(runs, "missing", "missing"),
            _judge_missing,
        ),
    ]
    return [(title, *(judge(lines) if lines else ("", UNKNOWN))) for title, lines, judge in judged]


def _judge_tails(tails: Sequence[Line]) -> tuple[str, str]:
    worst = min(tails, key=lambda one: float(one["share"]))
    words = (
        f"{worst['share']:.2f} at depth {worst['depth']} on {worst['given']}, steps "
        f"{worst['form']}, the least of {len(tails)}"
    )
    if max(one["share"] for one in tails) > TAIL_MOST:
        return words, f"no verdict: a share above {TAIL_MOST:g} is noise"
    return words, _verdict(worst["share"] >= TAIL_GOAL)


def _judge_naive(ratios: Sequence[Line]) -> tuple[str, str]:
    times = float(ratios[-1]["times"])
    return f"{times:.1f} times", _verdict(times >= NAIVE_GOAL)


def _judge_none(what: str, tails: Sequence[Line]) -> tuple[str, str]:
    """Say in which trainings something happens, and how often a step."""
    some = [
        f"{tail['given']}, {tail['way']}, {tail['form']}, depth {tail['depth']}: "
        f"{_each(tail, what):.2f} a step"
        for tail in tails
        if tail[what]
    ]
    return "; ".join(some) or f"none in {len(tails)} trainings", _verdict(not some)


def _judge_splits(splits: Sequence[Line]) -> tuple[str, str]:
    bad = [f"{split['backbone']} ({split['mode']})" for split in splits if not _is_equal(split)]
    names = {split["backbone"] for split in splits}
    words = f"{len(names)} backbones" + (f"; not: {', '.join(bad)}" if bad else "")
    return words, _verdict(not bad)


def _is_equal(line: Line) -> bool:
    if line["error"]:
        return False
    worst = max(line[key] for key in ("logits", "gradients", "statistics"))
    return worst <= SPLIT_LIMITS[line["mode"]] and line.get("cpu", 0.0) <= CPU_LIMIT


def _judge_tests(whole: bool, tests: Sequence[Line]) -> tuple[str, str]:
    passed = sum(test["outcome"] == "passed" for test in tests)
    failed = sum(test["outcome"] == "failed" for test in tests)
    words = f"{passed} passed, {failed} failed" + ("" if whole else ", not all were run")
    return words, _verdict(not failed) if whole or failed else "not all were run"


def _judge_workers(lines: Sequence[Line]) -> tuple[str, str]:
    complete, trials = lines[-1]["complete"], lines[-1]["trials"]
    return f"{complete} of {trials} complete", _verdict(complete == trials)


def _judge_little(lines: Sequence[Line]) -> tuple[str, str]:
    states, parts = lines[-1]["states"], lines[-1]["parts"]
    good = set(states) == {"COMPLETE"} and min(parts) < lines[-1]["batch"]
    return _trials(states, parts), _verdict(good)


def _judge_crowded(lines: Sequence[Line]) -> tuple[str, str]:
    states, parts = lines[-1]["states"], lines[-1]["parts"]
    done = [part for part, state in zip(parts, states, strict=True) if state == "COMPLETE"]
    good = states[-1] == "COMPLETE" and min(done) == lines[-1]["batch"]
    return _trials(states, parts), _verdict(good)


def _trials(states: Sequence[str], parts: Sequence[int]) -> str:
    return f"{', '.join(states).lower()}; parts of {', '.join(map(str, parts))}"


def _judge_missing(lines: Sequence[Line]) -> tuple[str, str]:
    said, trained = lines[-1]["said"], ", ".join(lines[-1]["trained_on"])
    words = f"trained on {trained}" if trained else said or "nothing was said"
    return _cell(words), _verdict(bool(said) and not trained)


def _verdict(good: bool) -> str:
    return REACHED if good else MISSED


# The sections


def _heading(runs: dict[str, list[Line]], date: str, dry: bool) -> list[str]:
    """Say when, and on what."""
    machine = next(iter(_of(runs, "environment", "machine")), None)
    if machine is None:
        words = f"Date: {date}. The step `environment` has no line: what this ran on is not known."
    else:
        versions = ", ".join(f"{name} {one}" for name, one in machine["versions"].items())
        words = (
            f"Date: {date}. GPU: {machine['gpu']}, capability {machine['capability']}, "
            f"{machine['total_bytes'] / 2**30:.0f} GiB. {machine['cores']} cores, "
            f"{machine['memory_bytes'] / 2**30:.0f} GiB memory. Python {machine['python']}, "
            f"{versions}, CUDA {machine['cuda']}."
        )
    if not dry:
        return [words]
    return [
        "**Nothing here was measured on a GPU.** This is a dry run on a simulated device, with "
        "small sizes: it shows that the check runs through. Its figures are those of a CPU, and "
        "mean nothing.",
        "",
        words,
    ]


#: Step -> its tables: what is said before, the kind of the lines, and the keys that are columns.
_TABLES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "tests": (("", "test", "name outcome seconds"),),
    "split": (
        (
            "Relative differences (Frobenius norm) of prefix and tail from the whole network on "
            "the same batch, and of the features of the GPU from those of the CPU (float32, all "
            "bits).",
            "split",
            "backbone mode logits gradients statistics cpu error",
        ),
    ),
    "precision": (
        (
            "A step of the whole network (forward, backward, fused AdamW) on a batch in memory; "
            "off: float32 with all bits.",
            "step",
            "backbone batch mode step_ms images_per_s",
        ),
        ("What `amp: auto` chooses:", "auto", "backbone chosen float32 seconds"),
    ),
    "throughput": (
        (
            "The best epoch of a real training, and of the same tail on one batch that lies on "
            "the GPU. Kernels, waits of the training thread and pageable copies are those of a "
            "step, between the first and the last step of an epoch.",
            "tail",
            "depth given way form autocast real resident share step_ms busy_share "
            "kernels_a_step waits_a_step elsewhere_a_step pageable_a_step",
        ),
    ),
    "features": (
        (
            "The first epoch of each also starts processes and chooses kernels.",
            "making",
            "depth made_from jitter epoch loader_workers images seconds images_per_s",
        ),
    ),
    "workers": (
        (
            "",
            "workers",
            "workers complete failed seconds trials_per_min trial_s busy_percent most_used_mib "
            "devices",
        ),
    ),
    "memory": (
        (
            "Plans that tune all layers: with all the memory, with 0.7 of what they need, and "
            "beside a process that holds all but 0.3 of it for a while.",
            "memory",
            "case states parts peak_mib allowed_mib held_mib seconds reasons",
        ),
    ),
    "naive": (
        (
            "Naive: loader processes, pinned memory, images fetched ahead, channels last, bf16 "
            "autocast, fused AdamW; some plans, scaled to the list by their depth, with the start "
            "of its processes once. Cold: nothing is kept. Warm: a fresh study with the files of "
            "the cold one. Both have one worker, and all starts and imports count. The seconds a "
            "trial are those of each depth.",
            "side",
            "side plans measured_s list_s times trial_s loader_workers",
        ),
    ),
}
#: Key -> its title, where that is another word, and decimals (``e``: two digits and an exponent).
_COLUMNS: dict[str, tuple[str, int | str | None]] = {
    "name": ("test", None),
    "seconds": ("seconds", 2),
    "mode": ("precision", None),
    "logits": ("logits", "e"),
    "gradients": ("gradients", "e"),
    "statistics": ("statistics", "e"),
    "cpu": ("GPU and CPU", "e"),
    "batch": ("images", None),
    "step_ms": ("ms a step", 2),
    "images_per_s": ("images/s", 0),
    "chosen": ("half precision", None),
    "float32": ("float32 products", None),
    "way": ("on the GPU", None),
    "form": ("steps", None),
    "autocast": ("precision", None),
    "real": ("images/s", 0),
    "resident": ("resident batch", 0),
    "share": ("share", 2),
    "busy_share": ("GPU busy", 2),
    "kernels_a_step": ("kernels", 0),
    "waits_a_step": ("waits", 2),
    "elsewhere_a_step": ("of other threads", 2),
    "pageable_a_step": ("pageable copies", 2),
    "made_from": ("made from", None),
    "loader_workers": ("loader processes", None),
    "trials_per_min": ("trials/min", 1),
    "trial_s": ("seconds a trial", 2),
    "busy_percent": ("GPU busy, %", 0),
    "most_used_mib": ("most memory, MiB", 0),
    "devices": ("device", None),
    "states": ("trials", None),
    "parts": ("images at a time", None),
    "peak_mib": ("peak, MiB", 0),
    "allowed_mib": ("allowed, MiB", 0),
    "held_mib": ("held after, MiB", 0),
    "measured_s": ("measured, s", 1),
    "list_s": ("the list, s", 1),
    "times": ("times faster", 1),
}


def _section(step: str, lines: Sequence[Line]) -> list[str]:
    """Write the tables of a step, and what else it has to say."""
    parts = []
    more = _MORE[step](lines) if step in _MORE else []
    for before, kind, keys in _TABLES.get(step, ()):
        rows = [_with_figures(line, lines) for line in lines if line["kind"] == kind]
        parts += ["", before] if before else []
        parts += ["", *_table(keys.split(), rows)] if rows or not more else []
    return [*parts, "", *more] if more else parts


def _with_figures(line: Line, lines: Sequence[Line]) -> Line:
    """Add figures that follow from a line: those of a step of a tail, the ratio of a side."""
    if line["kind"] == "tail":
        names = {"kernels": "kernels", "waits": "waits", "waits_elsewhere": "elsewhere"}
        names |= {"pageable": "pageable"}
        return line | {f"{name}_a_step": _each(line, key) for key, name in names.items()}
    ratios = {one["side"]: one["times"] for one in lines if one["kind"] == "ratio"}
    return line | {"times": ratios.get(line["side"])} if line["kind"] == "side" else line


def _environment(lines: Sequence[Line]) -> list[str]:
    said: list[str] = []
    for one in lines:
        if one["kind"] == "machine":
            free, total, allowed = (
                f"{one[key] / 2**30:.1f}" for key in ("free_bytes", "total_bytes", "allowed_bytes")
            )
            said += [
                f"{free} of {total} GiB free, {allowed} GiB for one process. Half precision: "
                f"{one['half']}. {one['cores']} of {one['processors']} processors may be used."
            ]
        if one["kind"] == "nvidia-smi":
            said += ["", "```", *one["said"].splitlines(), "```"]
    return said


def _tests(lines: Sequence[Line]) -> list[str]:
    found: list[str] = []
    for one in lines:
        if one["kind"] == "skipped":
            found += [f"Not run: {one['reason']}."]
        elif one["kind"] == "tests" and not one["ran"]:
            found += [f"{one['found']} tests were found; a dry run runs none of them."]
        elif one["kind"] == "test" and one["outcome"] == "failed":
            found += [f"{one['name']}:", "", "```", *one["said"].splitlines()[-15:], "```", ""]
    return found


def _throughput(lines: Sequence[Line]) -> list[str]:
    """Say what capturing steps brings, depth by depth, and what waits."""
    tails = [line for line in lines if line["kind"] == "tail"]
    speeds: dict[int, dict[str, float]] = {}
    for tail in tails:
        if tail["given"] == "features" and tail["way"] == "resident":
            speeds.setdefault(tail["depth"], {})[tail["form"]] = float(tail["real"])
    gains = [
        f"depth {depth}: {of_depth['captured'] / of_depth['plain']:.2f}"
        for depth, of_depth in sorted(speeds.items())
        if {"captured", "plain"} <= of_depth.keys()
    ]
    said = [f"A captured step, times as fast as a plain one: {'; '.join(gains)}."] if gains else []
    where = sorted({line for tail in tails for line in tail["lines"]})
    if where:
        said += ["", "What waits, or copies from pageable memory:", ""]
        said += [f"- {one}" for one in where]
    return said


def _each(line: Line, key: str) -> float | None:
    return None if line[key] is None else line[key] / max(1, line["steps"])


def _workers(lines: Sequence[Line]) -> list[str]:
    rates = [line["trials_per_min"] for line in lines if line["kind"] == "workers"]
    said = []
    if len(rates) == 2:
        said.append(f"Two workers bring {rates[1] / rates[0]:.2f} times the trials of one.")
    for one in lines:
        if one["kind"] == "memory":
            before, after = (one[key] / 2**20 for key in ("before_bytes", "after_bytes"))
            said.append(f"Free memory: {before:,.0f} MiB before, {after:,.0f} MiB after.")
    return said


def _missing(lines: Sequence[Line]) -> list[str]:
    return [
        f"GPU {line['gpu']}: {_cell(line['said'] or 'nothing was said')}"
        for line in lines
        if line["kind"] == "missing"
    ]


def _fit(lines: Sequence[Line]) -> list[str]:
    said = {line["kind"]: line for line in lines}
    found = []
    if "rerun" in said:
        one = said["rerun"]
        equal = "bit by bit" if one["differing"] is None else f"up to epoch {one['differing']}"
        found.append(
            f"- Rerun: equal {equal}; the objective differs by at most {one['furthest']:.2g} in "
            f"{one['epochs']} epochs."
        )
    if "fit" in said:
        one = said["fit"]
        found.append(
            f"- Fit: {one['seconds']:.1f} s on {one['trained_on']} images, measured on "
            f"{one['test_images']}."
        )
    if "predict" in said:
        one = said["predict"]
        found.append(
            f"- Predict: {one['images']} images in {one['seconds']:.2f} s; probabilities of GPU "
            f"and CPU differ by at most {one['furthest']:.2g}, the class is the same for "
            f"{one['same_class']:.1%}."
        )
    return found


#: What steps say that stands in no table.
_MORE: dict[str, Callable[[Sequence[Line]], list[str]]] = {
    "environment": _environment,
    "tests": _tests,
    "throughput": _throughput,
    "workers": _workers,
    "missing": _missing,
    "fit": _fit,
}


# Tables


def _table(keys: Sequence[str], rows: Sequence[Line]) -> list[str]:
    """Write a table; columns of which no row has anything are left out."""
    there = [key for key in keys if any(row.get(key) not in (None, "", []) for row in rows)]
    if not there:
        return ["No results."]
    titles = [_COLUMNS.get(key, (key, None))[0] for key in there]
    lines = ["| " + " | ".join(titles) + " |", "| --- " * len(there) + "|"]
    for row in rows:
        cells = [_shown(row.get(key), _COLUMNS.get(key, (key, None))[1]) for key in there]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _shown(value: Any, digits: int | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    if digits == "e":
        return f"{value:.1e}" if value else "0"
    if isinstance(digits, int):
        return _number(value, digits)
    return _cell(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _cell(text: str) -> str:
    """Write a text so that it stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _of(runs: dict[str, list[Line]], step: str, kind: str) -> list[Line]:
    return [line for line in runs.get(step, []) if line["kind"] == kind]


def _end_of(lines: Sequence[Line]) -> Line:
    return next((line for line in reversed(lines) if line["kind"] == ENDED), {})
