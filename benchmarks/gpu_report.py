"""The report of gpu.py, made of its lines alone: goals with verdicts, then every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Goal:
    """A goal, and what was found.

    Args:
        title: What is to be.
        found: What is.
        verdict: In a word.
    """

    title: str
    found: str
    verdict: str


def render(lines: Sequence[Line], date: str) -> str:
    """Write the report of the last run of each step."""
    runs = last_runs(lines)
    dry = any(line.get("dry") for line in lines)
    parts = ["# Check on a GPU", "", *_heading(runs, date, dry), "", "## Goals", ""]
    parts += ["| goal | found | verdict |", "| --- | --- | --- |"]
    for goal in goals(runs):
        verdict = f"{_SIMULATED}: no verdict" if dry else goal.verdict
        parts.append(f"| {goal.title} | {goal.found} | {verdict} |")
    parts += ["", "## Steps", "", "| step | half | ended | seconds | limit |"]
    parts += ["| --- | --- | --- | --- | --- |"]
    for step in STEPS:
        end = _end_of(runs.get(step.name, []))
        parts.append(
            f"| {step.name} | {step.half} | {end.get('ended', 'not run')} | "
            f"{_number(end.get('seconds'), 1)} | {_number(end.get('limit_s'), 0)} |"
        )
    for step in STEPS:
        found = runs.get(step.name)
        if not found:
            continue
        parts += ["", f"## {step.title}", "", *_SECTIONS[step.name](found)]
        end = _end_of(found)
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


def goals(runs: dict[str, list[Line]]) -> list[Goal]:
    """Hold what was measured against the goals."""
    return [
        _tail_goal(_of(runs, "throughput", "tail")),
        _naive_goal(_of(runs, "naive", "ratio"), "cold"),
        _naive_goal(_of(runs, "naive", "ratio"), "warm"),
        _waits_goal(_of(runs, "throughput", "tail")),
        _pageable_goal(_of(runs, "throughput", "tail")),
        _split_goal(_of(runs, "split", "split")),
        _tests_goal(runs.get("tests", [])),
        _workers_goal(_of(runs, "workers", "workers")),
        _memory_goal(_of(runs, "memory", "memory"), "little"),
        _memory_goal(_of(runs, "memory", "memory"), "crowded"),
        _missing_goal(_of(runs, "missing", "missing")),
    ]


def _tail_goal(tails: Sequence[Line]) -> Goal:
    title = f"a training on what lies on the GPU: at least {TAIL_GOAL:g} of one resident batch"
    found = [tail for tail in tails if tail["way"] == "resident"]
    if not found:
        return Goal(title, "", UNKNOWN)
    worst = min(found, key=lambda one: float(one["share"]))
    words = (
        f"{worst['share']:.2f} at depth {worst['depth']} on {worst['given']}, steps "
        f"{worst['form']}, the least of {len(found)}"
    )
    if max(one["share"] for one in found) > TAIL_MOST:
        return Goal(title, words, f"no verdict: a share above {TAIL_MOST:g} is noise")
    return Goal(title, words, _verdict(worst["share"] >= TAIL_GOAL))


def _naive_goal(ratios: Sequence[Line], side: str) -> Goal:
    title = f"the list of plans, {side}: {NAIVE_GOAL:g} times as fast as naive"
    times = [float(ratio["times"]) for ratio in ratios if ratio["side"] == side]
    if not times:
        return Goal(title, "", UNKNOWN)
    return Goal(title, f"{times[-1]:.1f} times", _verdict(times[-1] >= NAIVE_GOAL))


def _waits_goal(tails: Sequence[Line]) -> Goal:
    title = "the host waits for the GPU in no step"
    if not tails:
        return Goal(title, "", UNKNOWN)
    return Goal(title, *_none_of(tails, "waits"))


def _pageable_goal(tails: Sequence[Line]) -> Goal:
    title = "no step copies from memory that is not pinned"
    if not tails:
        return Goal(title, "", UNKNOWN)
    return Goal(title, *_none_of(tails, "pageable"))


def _none_of(tails: Sequence[Line], what: str) -> tuple[str, str]:
    """Say in which trainings something happens, and how often a step."""
    some = [
        f"{tail['given']}, {tail['way']}, {tail['form']}, depth {tail['depth']}: "
        f"{_each(tail, what):.2f} a step"
        for tail in tails
        if tail[what]
    ]
    return "; ".join(some) or f"none in {len(tails)} trainings", _verdict(not some)


def _split_goal(splits: Sequence[Line]) -> Goal:
    title = (
        "split and whole differ by at most "
        + ", ".join(f"{limit:g} in {mode}" for mode, limit in SPLIT_LIMITS.items())
        + f"; features on GPU and CPU by {CPU_LIMIT:g}"
    )
    if not splits:
        return Goal(title, "", UNKNOWN)
    bad = [f"{split['backbone']} ({split['mode']})" for split in splits if not _is_equal(split)]
    names = {split["backbone"] for split in splits}
    words = f"{len(names)} backbones" + (f"; not: {', '.join(bad)}" if bad else "")
    return Goal(title, words, _verdict(not bad))


def _is_equal(line: Line) -> bool:
    if line["error"]:
        return False
    worst = max(line[key] for key in ("logits", "gradients", "statistics"))
    return worst <= SPLIT_LIMITS[line["mode"]] and line.get("cpu", 0.0) <= CPU_LIMIT


def _tests_goal(lines: Sequence[Line]) -> Goal:
    title = "all tests with the marker `gpu` pass"
    tests = [line for line in lines if line["kind"] == "test"]
    if not tests:
        return Goal(title, "", UNKNOWN)
    passed = sum(test["outcome"] == "passed" for test in tests)
    failed = sum(test["outcome"] == "failed" for test in tests)
    whole = any(line["kind"] == "tests" for line in lines)
    words = f"{passed} passed, {failed} failed" + ("" if whole else ", not all were run")
    return Goal(title, words, _verdict(not failed) if whole or failed else "not all were run")


def _workers_goal(lines: Sequence[Line]) -> Goal:
    title = "no trial fails with two workers on the GPU"
    two = [line for line in lines if line["workers"] == 2]
    if not two:
        return Goal(title, "", UNKNOWN)
    words = f"{two[-1]['complete']} of {two[-1]['trials']} complete"
    return Goal(title, words, _verdict(two[-1]["complete"] == two[-1]["trials"]))


_CASES = {
    "little": "with too little memory, trials end in smaller parts",
    "crowded": "after a neighbor has left, trials end in whole batches",
}


def _memory_goal(lines: Sequence[Line], case: str) -> Goal:
    found = [line for line in lines if line.get("case") == case]
    if not found:
        return Goal(_CASES[case], "", UNKNOWN)
    line = found[-1]
    parts, batch = line["parts"], line["batch"]
    good = "COMPLETE" in line["states"] and (
        min(parts) < batch if case == "little" else line["states"][-1] == "COMPLETE"
    )
    if case == "crowded":
        done = [part for part, state in zip(parts, line["states"], strict=True) if _ended(state)]
        good = good and min(done) == batch
    else:
        good = good and all(_ended(state) for state in line["states"])
    words = f"{', '.join(line['states']).lower()}; parts of {', '.join(map(str, parts))}"
    return Goal(_CASES[case], words, _verdict(good))


def _ended(state: str) -> bool:
    return state == "COMPLETE"


def _missing_goal(lines: Sequence[Line]) -> Goal:
    title = "a worker whose GPU is not there refuses, and trains nothing"
    if not lines:
        return Goal(title, "", UNKNOWN)
    line = lines[-1]
    trained = ", ".join(line["trained_on"])
    words = f"trained on {trained}" if trained else line["said"] or "nothing was said"
    return Goal(title, _cell(words), _verdict(bool(line["said"]) and not trained))


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
    for one in lines:
        if one["kind"] == "skipped":
            return [f"Not run: {one['reason']}."]
        if one["kind"] == "tests" and not one["ran"]:
            return [f"{one['found']} tests were found; a dry run runs none of them."]
    tests = [line for line in lines if line["kind"] == "test"]
    table = _table(
        [("test", "name", None), ("outcome", "outcome", None), ("seconds", "seconds", 1)], tests
    )
    for one in tests:
        if one["outcome"] == "failed":
            table += ["", f"{one['name']}:", "", "```", *one["said"].splitlines()[-15:], "```"]
    return table


def _split(lines: Sequence[Line]) -> list[str]:
    rows = [line for line in lines if line["kind"] == "split"]
    columns = [("backbone", "backbone", None), ("precision", "mode", None)]
    figures = [(name, name, "e") for name in ("logits", "gradients", "statistics")]
    return [
        "Relative differences (Frobenius norm) of prefix and tail from the whole network on the "
        "same batch, and of the features of the GPU from those of the CPU (float32, all bits).",
        "",
        *_table([*columns, *figures, ("GPU and CPU", "cpu", "e"), ("error", "error", None)], rows),
    ]


def _precision(lines: Sequence[Line]) -> list[str]:
    steps = [line for line in lines if line["kind"] == "step"]
    chosen = [line for line in lines if line["kind"] == "auto"]
    return [
        "A step of the whole network (forward, backward, fused AdamW) on a batch in memory; off: "
        "float32 with all bits.",
        "",
        *_table(
            [
                ("backbone", "backbone", None),
                ("images", "batch", None),
                ("precision", "mode", None),
                ("ms a step", "step_ms", 2),
                ("images/s", "images_per_s", 0),
            ],
            steps,
        ),
        "",
        "What `amp: auto` chooses:",
        "",
        *_table(
            [
                ("backbone", "backbone", None),
                ("half precision", "chosen", None),
                ("float32 products", "float32", None),
                ("seconds to choose", "seconds", 2),
            ],
            chosen,
        ),
    ]


def _throughput(lines: Sequence[Line]) -> list[str]:
    tails = [line for line in lines if line["kind"] == "tail"]
    rows = [
        {
            **tail,
            "kernels_a_step": _each(tail, "kernels"),
            "waits_a_step": _each(tail, "waits"),
            "elsewhere_a_step": _each(tail, "waits_elsewhere"),
            "pageable_a_step": _each(tail, "pageable"),
        }
        for tail in tails
    ]
    table = _table(
        [
            ("depth", "depth", None),
            ("given", "given", None),
            ("on the GPU", "way", None),
            ("steps", "form", None),
            ("precision", "autocast", None),
            ("images/s", "real", 0),
            ("resident batch", "resident", 0),
            ("share", "share", 2),
            ("ms a step", "step_ms", 2),
            ("GPU busy", "busy_share", 2),
            ("kernels", "kernels_a_step", 0),
            ("waits", "waits_a_step", 2),
            ("of other threads", "elsewhere_a_step", 2),
            ("pageable copies", "pageable_a_step", 2),
        ],
        rows,
    )
    where = sorted({line for tail in tails for line in tail["lines"]})
    said = ["", "What waits, or copies from pageable memory:", "", *(f"- {one}" for one in where)]
    return [
        "The best epoch of a real training, and of the same tail on one batch that lies on the "
        "GPU. Kernels, waits of the training thread and pageable copies are those of a step, "
        "between the first and the last step of an epoch.",
        "",
        *table,
        *_captured(tails),
        *(said if where else []),
    ]


def _captured(tails: Sequence[Line]) -> list[str]:
    """Say what capturing steps brings, depth by depth."""
    speeds: dict[int, dict[str, float]] = {}
    for tail in tails:
        if tail["given"] == "features" and tail["way"] == "resident":
            speeds.setdefault(tail["depth"], {})[tail["form"]] = float(tail["real"])
    gains = [
        f"depth {depth}: {of_depth['captured'] / of_depth['plain']:.2f}"
        for depth, of_depth in sorted(speeds.items())
        if {"captured", "plain"} <= of_depth.keys()
    ]
    words = f"A captured step, times as fast as a plain one: {'; '.join(gains)}."
    return ["", words] if gains else []


def _each(line: Line, key: str) -> float | None:
    return None if line[key] is None else line[key] / max(1, line["steps"])


def _features(lines: Sequence[Line]) -> list[str]:
    rows = [line for line in lines if line["kind"] == "making"]
    return [
        "The first epoch of each also starts processes and chooses kernels.",
        "",
        *_table(
            [
                ("depth", "depth", None),
                ("made from", "made_from", None),
                ("jitter", "jitter", None),
                ("epoch", "epoch", None),
                ("processes", "loader_workers", None),
                ("images", "images", None),
                ("seconds", "seconds", 2),
                ("images/s", "images_per_s", 0),
            ],
            rows,
        ),
    ]


def _workers(lines: Sequence[Line]) -> list[str]:
    rows = [line for line in lines if line["kind"] == "workers"]
    found = _table(
        [
            ("workers", "workers", None),
            ("complete", "complete", None),
            ("failed", "failed", None),
            ("seconds", "seconds", 1),
            ("trials/min", "trials_per_min", 1),
            ("seconds a trial", "trial_s", 2),
            ("GPU busy, %", "busy_percent", 0),
            ("most memory, MiB", "most_used_mib", 0),
            ("device", "devices", None),
        ],
        rows,
    )
    if len(rows) == 2:
        gain = rows[1]["trials_per_min"] / rows[0]["trials_per_min"]
        found += ["", f"Two workers bring {gain:.2f} times the trials of one."]
    for one in lines:
        if one["kind"] == "memory":
            before, after = (one[key] / 2**20 for key in ("before_bytes", "after_bytes"))
            found += [f"Free memory: {before:,.0f} MiB before, {after:,.0f} MiB after."]
    return found


def _memory(lines: Sequence[Line]) -> list[str]:
    rows = [line for line in lines if line["kind"] == "memory"]
    return [
        "Plans that tune all layers: with all the memory, with 0.7 of what they need, and beside "
        "a process that holds all but 0.3 of it for a while.",
        "",
        *_table(
            [
                ("case", "case", None),
                ("trials", "states", None),
                ("images at a time", "parts", None),
                ("peak, MiB", "peak_mib", 0),
                ("allowed, MiB", "allowed_mib", 0),
                ("held after, MiB", "held_mib", 0),
                ("seconds", "seconds", 1),
                ("reasons", "reasons", None),
            ],
            rows,
        ),
    ]


def _missing(lines: Sequence[Line]) -> list[str]:
    return [
        f"GPU {line['gpu']}: {_cell(line['said'] or 'nothing was said')}"
        for line in lines
        if line["kind"] == "missing"
    ]


def _naive(lines: Sequence[Line]) -> list[str]:
    rows = [line for line in lines if line["kind"] == "side"]
    ratios = {line["side"]: line["times"] for line in lines if line["kind"] == "ratio"}
    return [
        "Naive: loader processes, pinned memory, images fetched ahead, channels last, bf16 "
        "autocast, fused AdamW; some plans, scaled to the list by their depth, with the start of "
        "its processes once. Cold: nothing is kept. Warm: a fresh study with the files of the "
        "cold one. Both have one worker, and all starts and imports count.",
        "",
        *_table(
            [
                ("side", "side", None),
                ("plans", "plans", None),
                ("measured, s", "measured_s", 1),
                ("the list, s", "list_s", 1),
                ("times faster", "times", 1),
                ("seconds a trial, by depth", "trial_s", None),
                ("loader processes", "loader_workers", None),
            ],
            [{**row, "times": ratios.get(row["side"])} for row in rows],
        ),
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


_SECTIONS: dict[str, Callable[[Sequence[Line]], list[str]]] = {
    "environment": _environment,
    "tests": _tests,
    "split": _split,
    "precision": _precision,
    "throughput": _throughput,
    "features": _features,
    "workers": _workers,
    "memory": _memory,
    "missing": _missing,
    "naive": _naive,
    "fit": _fit,
}


# Tables

#: Heading, key of the line, and decimals (``e``: two digits and an exponent; ``None``: text).
Column = tuple[str, str, int | str | None]


def _table(columns: Sequence[Column], rows: Sequence[Line]) -> list[str]:
    """Write a table; columns of which no row has anything are left out."""
    there = [one for one in columns if any(row.get(one[1]) not in (None, "", []) for row in rows)]
    if not there:
        return ["No results."]
    lines = ["| " + " | ".join(title for title, _, _ in there) + " |", "| --- " * len(there) + "|"]
    for row in rows:
        cells = [_shown(row.get(key), digits) for _, key, digits in there]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _shown(value: Any, digits: int | str | None) -> str:
    if value is None:
        return ""
    if digits == "e":
        return f"{value:.1e}" if value else "0"
    if isinstance(digits, int):
        return _number(value, digits)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
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
