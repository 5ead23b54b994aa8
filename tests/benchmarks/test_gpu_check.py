"""benchmarks/gpu.py: steps that hang cost one step, lines stay, the report says what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def context(module: Any, folder: Path, limit_s: float = 30.0) -> Any:
    home = folder / "work"
    home.mkdir()
    made = module("gpu_steps.context").Context
    return made("split", False, folder / "lines.jsonl", folder / "images", home, limit_s)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_half_takes_six_minutes_at_most(module: Any) -> None:
    plan = module("gpu_steps.plan")
    for half in (1, 2):
        assert sum(step.limit_s for step in plan.steps_of(half)) <= plan.HALF_S - 10
    assert plan.HALF_S <= 360
    names = [step.name for step in plan.STEPS]
    assert len(set(names)) == len(names) and len(plan.steps_of(None)) == len(names)


def test_every_step_has_a_function_and_a_section(module: Any) -> None:
    report = module("gpu_report")
    for step in module("gpu_steps.plan").STEPS:
        name, function = step.place.split(".")
        assert callable(getattr(module(f"gpu_steps.{name}"), function))
        assert step.name in {**report._TABLES, **report._MORE}


#: A step that writes a line, starts processes, one as a launcher starts workers, and never ends.
HANGS = """
import json, subprocess, sys, time
told = json.loads(sys.argv[1])
hang = [sys.executable, "-c", "import time; time.sleep(600)"]
pids = [subprocess.Popen(hang, start_new_session=one).pid for one in (False, True)]
with open(told["lines"], "a") as file:
    file.write(json.dumps({"step": told["step"], "kind": "row", "pids": pids}) + "\\n")
time.sleep(600)
"""


def test_a_step_that_hangs_is_ended_with_all_that_it_has_started(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module("gpu"), "_GRACE_S", 0.3)
    given = context(module, tmp_path, limit_s=5.0)  # time enough to start on a busy machine
    start = time.monotonic()
    assert module("gpu").run_step(given, [sys.executable, "-c", HANGS]) == "timed out"
    assert time.monotonic() - start < 30
    started, row, ended = lines(tmp_path)
    assert (started["kind"], row["kind"], ended["kind"]) == ("started", "row", "ended")
    assert ended["ended"] == "timed out" and ended["seconds"] >= 5.0
    assert not any(map(is_alive, row["pids"]))


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("print('fine')", "ok", ""),
        ("raise ValueError('no such kernel')", "failed", "no such kernel"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "failed", ""),
    ],
)
def test_how_a_step_ended(code: str, ended: str, said: str, tmp_path: Path, module: Any) -> None:
    given = context(module, tmp_path)
    assert module("gpu").run_step(given, [sys.executable, "-c", code]) == ended
    last = lines(tmp_path)[-1]
    assert last["ended"] == ended
    assert said in last["said"]


def test_what_a_step_is_told_arrives(tmp_path: Path, module: Any) -> None:
    given = context(module, tmp_path)
    again = type(given).from_json(given.to_json())
    assert again.to_json() == given.to_json()
    assert again.lines == given.lines and again.gpu is None
    again.add("row", share=0.5)
    (line,) = lines(tmp_path)
    assert (line["step"], line["kind"], line["share"], line["dry"]) == ("split", "row", 0.5, False)


def test_half_a_line_is_left_out(tmp_path: Path, module: Any) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"step": "split", "kind": "row"}\n{"step": "sp')
    assert len(module("reports").read_lines(file)) == 1


# What the profiler saw


def event(name: str, cat: str, ts: float, dur: float = 1.0, tid: Any = 7) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "tid": tid}


def steps_at(*times: float) -> list[dict[str, Any]]:
    return [event("gpu.py step", "user_annotation", ts) for ts in times]


def read(module: Any, *events: dict[str, Any]) -> Any:
    meta = {"ph": "M", "name": "process_name", "pid": 1}
    return module("gpu_steps.trace").read_trace({"traceEvents": [meta, *events]})


def test_how_busy_the_gpu_is(module: Any) -> None:
    found = read(
        module,
        *steps_at(100.0, 150.0, 200.0),
        event("gemm", "kernel", 100.0, 30.0, tid=20),
        event("gemm", "kernel", 110.0, 30.0, tid=21),  # on another stream: it overlaps
        event("Memset (Device)", "gpu_memset", 190.0, 50.0, tid=20),  # beyond the last step
        event("gemm", "kernel", 50.0, 10.0, tid=20),
    )
    assert found.steps == 2
    assert found.busy_share == pytest.approx((40 + 10) / 100)
    assert found.kernels == 2


def test_waits_and_pageable_copies_between_the_steps(module: Any) -> None:
    pageable, pinned = "Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD (Pinned -> Device)"
    found = read(
        module,
        *steps_at(100.0, 150.0, 200.0),
        event("cudaLaunchKernel", "cuda_runtime", 101.0),
        event("cudaStreamSynchronize", "cuda_runtime", 120.0),
        event("cudaStreamSynchronize", "cuda_runtime", 130.0, tid=8),  # reads ahead
        event("cudaDeviceSynchronize", "cuda_runtime", 201.0),  # the end of the epoch
        event(pageable, "gpu_memcpy", 140.0, tid=20),
        event(pinned, "gpu_memcpy", 141.0, tid=20),
        event("Memcpy DtoH (Device -> Pageable)", "gpu_memcpy", 142.0, tid=20),
    )
    assert (found.waits, found.waits_elsewhere, found.pageable) == (1, 1, 1)
    assert found.lines == (f"{pageable} (1 times)", "cudaStreamSynchronize (1 times)")


def test_no_wait_is_missed_where_threads_have_other_numbers(module: Any) -> None:
    found = read(
        module,
        *steps_at(100.0, 200.0),
        event("cudaLaunchKernel", "cuda_runtime", 101.0, tid="stream 7"),
        event("cudaEventSynchronize", "cuda_runtime", 120.0, tid="stream 7"),
    )
    assert found.waits == 1


def test_a_trace_without_steps_is_refused(module: Any) -> None:
    with pytest.raises(ValueError, match="two steps at least, but has 1"):
        read(module, *steps_at(100.0))


# The report


def line(step: str, kind: str, **values: Any) -> dict[str, Any]:
    return {"step": step, "kind": kind, "dry": False, **values}


def tail(**changed: Any) -> dict[str, Any]:
    values = {"depth": 2, "way": "resident", "given": "features", "form": "plain"}
    values |= {"autocast": "bfloat16", "real": 950.0, "resident": 1000.0, "share": 0.96}
    values |= {"step_ms": 5.0, "steps": 20, "busy_share": 0.4, "kernels": 2000}
    values |= {"waits": 0, "waits_elsewhere": 0, "pageable": 0, "lines": []}
    return line("throughput", "tail", **values | changed)


def memory(case: str, states: str, parts: list[int]) -> dict[str, Any]:
    names = {"C": "COMPLETE", "P": "PRUNED", "F": "FAIL"}
    ended = [names[state] for state in states]
    return line("memory", "memory", case=case, batch=64, states=ended, parts=parts, reasons=[])


def split(**changed: Any) -> dict[str, Any]:
    values = {"backbone": "resnet50", "mode": "off", "error": ""}
    values |= {"logits": 1e-6, "gradients": 1e-6, "statistics": 0.0}
    return line("split", "split", **values | changed)


def missing(said: str, *trained_on: str) -> dict[str, Any]:
    return line("missing", "missing", gpu="63", said=said, trained_on=list(trained_on))


def naive(times: float) -> dict[str, Any]:
    return line("naive", "ratio", side="warm", times=times)


def page_of(module: Any, *found: dict[str, Any]) -> str:
    """Write the report of the run of a step."""
    return module("gpu_report").render([line(found[0]["step"], "started"), *found], "2030-01-01")


def verdict(page: str, title: str) -> str:
    (row,) = [line for line in page.splitlines() if line.startswith("| ") and title in line]
    return row.split(" | ")[-1].removesuffix(" |")


RESIDENT, LITTLE = "one resident batch", "with too little memory"
WAITS, CROWDED = "waits for the GPU in no step", "after a neighbor has left"
SPLIT, MISSING = "split and whole differ", "whose GPU is not there"
LIST, NO_GPU = "the list of plans, warm", "DeviceError: there is no GPU 63"


@pytest.mark.parametrize(
    ("line", "title", "expected"),
    [
        (tail(), RESIDENT, "reached"),
        (tail(share=0.94), RESIDENT, "MISSED"),
        (tail(share=1.2), RESIDENT, "no verdict: a share above 1.05 is noise"),
        (tail(way="not resident", share=0.5), RESIDENT, "not measured"),
        (tail(), WAITS, "reached"),
        (tail(waits=1), WAITS, "MISSED"),
        (tail(waits_elsewhere=40), WAITS, "reached"),
        (tail(pageable=40), "memory that is not pinned", "MISSED"),
        (naive(10.0), LIST, "reached"),
        (naive(9.9), LIST, "MISSED"),
        (naive(10.0), "the list of plans, cold", "not measured"),
        (split(), SPLIT, "reached"),
        (split(mode="bf16", logits=0.01), SPLIT, "reached"),
        (split(logits=0.01), SPLIT, "MISSED"),
        (split(cpu=0.1), SPLIT, "MISSED"),
        (split(error="does not split"), SPLIT, "MISSED"),
        (memory("little", "CC", [64, 32]), LITTLE, "reached"),
        (memory("little", "CP", [64, 2]), LITTLE, "MISSED"),
        (memory("little", "CC", [64, 64]), LITTLE, "MISSED"),
        (memory("crowded", "CC", [64, 64]), CROWDED, "reached"),
        (memory("crowded", "FCC", [64, 64, 64]), CROWDED, "reached"),
        (memory("crowded", "CC", [64, 2]), CROWDED, "MISSED"),
        (memory("crowded", "CF", [64, 64]), CROWDED, "MISSED"),
        (missing(NO_GPU), MISSING, "reached"),
        (missing("", "cpu"), MISSING, "MISSED"),
        (missing(NO_GPU, "cpu"), MISSING, "MISSED"),
        (missing(""), MISSING, "MISSED"),
    ],
)
def test_verdicts(line: dict[str, Any], title: str, expected: str, module: Any) -> None:
    page = page_of(module, line)
    assert verdict(page, title) == expected
    if line["step"] == "split":
        assert ("resnet50 (" in page) == (expected == "MISSED")


def test_what_capturing_steps_brings(module: Any) -> None:
    page = page_of(module, tail(), tail(form="captured", real=2850.0), tail(depth=4))
    assert "A captured step, times as fast as a plain one: depth 2: 3.00." in page


@pytest.mark.parametrize(
    ("outcomes", "ended", "expected"),
    [
        (["passed", "passed"], True, "reached"),
        (["passed", "failed"], True, "MISSED"),
        (["passed", "failed"], False, "MISSED"),
        (["passed"], False, "not all were run"),
        ([], True, "not measured"),
    ],
)
def test_verdict_of_the_tests(
    outcomes: list[str], ended: bool, expected: str, module: Any
) -> None:
    told = {"name": "one", "seconds": 1.0, "said": "assert False"}
    found = [line("tests", "test", outcome=outcome, **told) for outcome in outcomes]
    if ended:
        found.append(line("tests", "tests", found=2, code=0, ran=True))
    page = page_of(module, *found)
    assert verdict(page, "all tests with the marker") == expected


def test_the_last_run_of_a_step_counts(module: Any) -> None:
    page = page_of(module, tail(share=0.5), line("throughput", "started"), tail(share=0.97))
    assert "0.97 at depth 2" in page and "0.5" not in verdict(page, "one resident batch")
    assert page.count("| 2 | features |") == 1


def test_a_step_that_failed_says_why(module: Any) -> None:
    said = "resnet50: 9.1 s\nno kernel image is available"
    end = {"ended": "timed out", "seconds": 75.0, "limit_s": 75.0, "said": said}
    page = page_of(module, line("split", "ended", **end))
    assert "| split | 1 | timed out | 75.0 | 75 |" in page
    assert "no kernel image is available" in page
    assert "| fit | 2 | not run |  |  |" in page


def test_a_dry_run_has_no_verdict(module: Any) -> None:
    page = page_of(module, tail(dry=True))
    assert "Nothing here was measured on a GPU" in page
    assert verdict(page, "one resident batch") == "simulated: no verdict"
    assert "reached" not in page and "MISSED" not in page


def test_a_list_is_scaled_by_depth_and_starts_once(module: Any) -> None:
    plans = module("naive").draw_plans(5, 4)  # depths 0, 1, 2, 3, 4
    scaled = module("gpu_steps.naive_list").scale(20.0, {0: 2.0, 4: 8.0}, plans)
    assert scaled == pytest.approx(10.0 + 3 * 2.0 + 2 * 8.0)


def test_a_report_without_lines_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--report", f"--results={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "has no lines of that day" in ended.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("half", [1, 2])
def test_the_check_runs_through_on_the_simulated_device(
    half: int, tmp_path: Path, module: Any
) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry", f"--half={half}"]
    ended = subprocess.run(
        [*command, f"--results={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (file,) = tmp_path.glob("*.jsonl")
    found = module("reports").read_lines(file)
    assert all(line["dry"] for line in found)
    expected = {step.name for step in module("gpu_steps.plan").steps_of(half)}
    endings = {line["step"]: line["ended"] for line in found if line["kind"] == "ended"}
    assert endings == dict.fromkeys(expected, "ok")
    check = {1: first_half, 2: second_half}[half]
    check({name: [line for line in found if line["step"] == name] for name in expected})
    (report,) = tmp_path.glob("*.md")
    page = report.read_text()
    assert "Nothing here was measured on a GPU" in page
    assert not list((BENCHMARKS / "results").glob("*gpu-half*"))


def only(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in found if line["kind"] == kind]


def first_half(found: dict[str, list[dict[str, Any]]]) -> None:
    (machine,) = only(found["environment"], "machine")
    assert machine["gpu"] == "Simulated GPU" and machine["allowed_bytes"] > 0
    (tests,) = only(found["tests"], "tests")
    assert tests["found"] > 10 and not tests["ran"]
    splits = only(found["split"], "split")
    assert {line["mode"] for line in splits} == {"off", "bf16"}
    for line in splits:
        assert line["error"] == ""
        assert max(line["logits"], line["gradients"], line["statistics"]) < 1e-5
    assert {line["mode"] for line in only(found["precision"], "step")} == {"off", "tf32", "bf16"}
    assert only(found["precision"], "auto")
    tails = only(found["throughput"], "tail")
    assert {(line["given"], line["way"]) for line in tails} == {
        (given, way) for given in ("features", "images") for way in ("resident", "not resident")
    }
    assert all(line["steps"] > 2 and line["waits"] == 0 for line in tails)
    on_gpu = [line for line in tails if (line["given"], line["way"]) == ("features", "resident")]
    assert {line["form"] for line in on_gpu} == {"captured", "plain"}


def second_half(found: dict[str, list[dict[str, Any]]]) -> None:
    assert {line["jitter"] for line in only(found["features"], "making")} == {0.0, 0.4}
    one, two = only(found["workers"], "workers")
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["complete"] == two["complete"] == one["trials"]
    assert two["devices"] == ["Simulated GPU"]
    cases = {line["case"]: line for line in only(found["memory"], "memory")}
    assert cases["plain"]["parts"] == cases["crowded"]["parts"] == [32, 32]
    assert cases["little"]["states"] == ["COMPLETE", "COMPLETE"]
    assert min(cases["little"]["parts"]) < 32
    (missing,) = only(found["missing"], "missing")
    assert missing["said"] and not missing["trained_on"]
    (here,) = only(found["naive"], "naive on the device")
    assert (here["state"], here["device"]) == ("COMPLETE", "cuda")
    assert {line["side"] for line in only(found["naive"], "side")} == {"naive", "cold", "warm"}
    (rerun,) = only(found["fit"], "rerun")
    assert rerun["furthest"] == 0.0
    (predict,) = only(found["fit"], "predict")
    assert predict["furthest"] < 1e-5
