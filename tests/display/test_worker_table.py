"""The table of workers, at the widths that terminals have."""

from __future__ import annotations

from io import StringIO

import pytest
from optuna.study import StudyDirection

from autotune.display.console import VisibleConsole
from autotune.display.worker_table import WorkersTable
from autotune.results.report.workers import WorkerRow
from autotune.results.values.objective import Objective

RESHAPED = (
    "5 of 8 trainable layers; layer 1 kernel 5, width 0.5, activation gelu; layer 2 low rank 128, "
    "drop path 0.1; layer 4 kernel 7, pool max3, adamw lr 0.0031, layer decay 0.72, dropout 0.3"
)
HOSTS = ("gpu-box", "ip-10-0-12-34.eu-central-1.compute.internal")
OBJECTIVE = Objective("balanced_accuracy", StudyDirection.MAXIMIZE)


def drawn(width: int, one_line: bool, host: str, plan: str) -> list[str]:
    rows = [
        WorkerRow(f"{host}/41231/0", "NVIDIA H200 GPU 0", 12, plan, 7, 20, 0.8123, 12, 0.4, 1234),
        WorkerRow("box/41/2", "cpu", None, silent_s=7),
    ]
    out = StringIO()
    table = WorkersTable(rows, OBJECTIVE, one_line=one_line)
    VisibleConsole(file=out, width=width, force_terminal=False).print(table)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("one_line", [True, False], ids=["watch", "status"])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("plan", ["backbone frozen, linear head, adamw lr 0.03", RESHAPED])
def test_every_number_is_shown_whole(width: int, one_line: bool, host: str, plan: str) -> None:
    lines = drawn(width, one_line, host, plan)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    for words in ("host", "worker", "device", "trial", "epoch", "heartbeat", "speed", host[:7]):
        assert words in text
    (row,) = (line for line in lines if "7/20" in line)
    for words in ("12", "81.2 %", "12 s ago", "1,234 images/s", "NVIDIA", "41231/0"):
        assert words in row
    assert plan[:30] in text and "between trials for 7 s" in text
    if one_line:
        assert len(lines) <= 6
    else:
        assert len(lines) <= 12 and plan.split()[-1] in text


def test_a_plan_has_a_column_where_there_is_room() -> None:
    assert "plan" in drawn(200, True, *HOSTS[:1], RESHAPED)[0]
    wide = drawn(120, True, "box", "short plan")
    assert "plan" in wide[0] and "short plan" in wide[1]
    narrow = drawn(80, True, "gpu-box", RESHAPED)
    assert any(line.startswith("trial 12: 5 of 8 trainable layers; layer 1") for line in narrow)
    assert any(line.startswith("worker 41/2: between trials") for line in narrow)


@pytest.mark.parametrize("width", [65, 70, 80, 100])
@pytest.mark.parametrize("host", HOSTS)
def test_nine_workers_keep_their_numbers_on_a_narrow_terminal(width: int, host: str) -> None:
    numbers = (187, 200, 0.8123, 400, 0.4, 12345)
    rows = [WorkerRow(f"{host}/41231/{i}", "GPU 0", i, RESHAPED, *numbers) for i in range(9)]
    out = StringIO()
    table = WorkersTable(rows, OBJECTIVE, one_line=True)
    VisibleConsole(file=out, width=width, force_terminal=False).print(table)
    lines = out.getvalue().splitlines()
    shown = [" ".join(line.split()) for line in lines if "187/200" in line]
    assert len(shown) == 9 and len(lines) <= 20
    assert all(line.endswith("187/200 81.2 % silent 400 s 12,345 images/s") for line in shown)
