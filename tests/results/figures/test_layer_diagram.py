"""The layers of a plan, drawn."""

from __future__ import annotations

import re

from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrialPlan
from autotune.results.figures.layer_diagram import LayerRow, as_html, as_text, layer_rows


def rows(
    count: int, depth: int, *plans: LayerPlan, head: HeadPlan | None = None
) -> tuple[LayerRow, ...]:
    """Return the rows of a plan; a study remembers the last layer first."""
    layers = [
        {"index": i, "label": f"block.{count - i}", "parameters": 1000 * i}
        for i in range(1, count + 1)
    ]
    plan = TrialPlan("net", depth, plans or (LayerPlan(),) * depth, head or HeadPlan())
    return layer_rows(layers, plan)


def test_rows_run_from_the_input_to_the_head() -> None:
    found = rows(3, 1)
    assert [row.index for row in found] == [3, 2, 1, 0]
    assert [row.state for row in found] == ["frozen", "frozen", "trainable", "trainable"]
    assert found[0] == LayerRow(3, "block.0", 3000, "frozen")
    assert found[-1] == LayerRow(0, "head", None, "trainable", "linear")
    assert {row.state for row in rows(2, 7)} == {"trainable"}  # deeper than the backbone


def test_changes_are_those_of_the_layer_counted_from_the_output() -> None:
    head = HeadPlan((HiddenLayer(256, 0.5), HiddenLayer(64)), pool="max")
    plans = LayerPlan(kernel=5), LayerPlan(width=0.5, drop_path=0.1)
    found = rows(3, 2, *plans, head=head)
    assert [row.change for row in found] == [
        *("", "width 0.5, drop path 0.1", "kernel 5"),
        "256 (dropout 0.5) + 64, max pooling",
    ]
    assert [row.state for row in found] == ["frozen", "reshaped", "reshaped", "trainable"]


def test_text_is_aligned_and_one_line_per_layer() -> None:
    assert as_text(()) == ""
    assert as_text(rows(3, 2, LayerPlan(kernel=5), LayerPlan())) == (
        "□ layer 3  frozen     3.00 k parameters  block.0\n"
        "■ layer 2  trainable  2.00 k parameters  block.1\n"
        "▣ layer 1  reshaped   1.00 k parameters  block.2  kernel 5\n"
        "■ head     trainable                              linear"
    )


def test_text_joins_long_runs_but_never_the_head() -> None:
    lines = as_text(rows(60, 3)).splitlines()
    assert lines[0] == "□ layers 4-60  frozen     1.82 M parameters  block.0 … block.56"
    assert len(lines) == 5
    lines = as_text(rows(60, 60)).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["■ layers 1-60", "■ head"]


def test_html_opens_a_run_of_like_layers() -> None:
    html = as_html(rows(60, 3))
    assert re.findall('<li class="(.*?)">', html) == ["frozen", *["trainable"] * 4]
    assert html.count("<details>") == 1 and html.count("<li") == 5 + 57
    html = as_html(rows(16, 15, *[LayerPlan(width=0.5)] * 14, LayerPlan()))
    states = ["frozen", "trainable", "reshaped", "trainable"]
    assert re.findall('<li class="(.*?)">', html) == states
    assert html.count("<details>") == 1
    html = as_html([LayerRow(1, "<script>alert(1)</script>", 1, "trainable")])
    assert "<script>" not in html and "&lt;script&gt;alert(1)" in html
