"""The picture of frozen and trainable layers of a plan."""

from __future__ import annotations

from html.parser import HTMLParser

from autotune.plan import HeadPlan, HiddenLayer, LayerPlan, TrialPlan
from autotune.results.figures.layer_diagram import LayerRow, as_html, as_text, layer_rows


def layers(count: int) -> list[dict[str, object]]:
    """Return the layers of a backbone as a study remembers them, the last one first."""
    return [
        {"index": i, "label": f"block.{count - i}", "parameters": 1000 * i}
        for i in range(1, count + 1)
    ]


def plan(depth: int, *planned: LayerPlan, head: HeadPlan | None = None) -> TrialPlan:
    return TrialPlan(
        "net",
        depth=depth,
        layers=planned or (LayerPlan(),) * depth,
        head=head or HeadPlan(),
    )


def test_rows_run_from_the_input_to_the_head() -> None:
    picture = layer_rows(layers(3), plan(1))
    assert [row.index for row in picture] == [3, 2, 1, 0]
    assert [row.state for row in picture] == ["frozen", "frozen", "trainable", "trainable"]
    assert picture[0] == LayerRow(3, "block.0", 3000, "frozen")
    assert picture[-1] == LayerRow(0, "head", None, "trainable", "linear")


def test_changes_are_those_of_the_layer_counted_from_the_output() -> None:
    picture = layer_rows(
        layers(3), plan(2, LayerPlan(kernel=5), LayerPlan(width=0.5, drop_path=0.1))
    )
    assert [row.change for row in picture[:-1]] == ["", "width 0.5, drop path 0.1", "kernel 5"]
    assert [row.state for row in picture] == ["frozen", "reshaped", "reshaped", "trainable"]


def test_head_in_words() -> None:
    head = HeadPlan((HiddenLayer(256, 0.5), HiddenLayer(64)), pool="max")
    assert layer_rows(layers(1), plan(0, head=head))[-1].change == (
        "256 (dropout 0.5) + 64, max pooling"
    )


def test_depth_beyond_the_backbone_tunes_everything() -> None:
    assert {row.state for row in layer_rows(layers(2), plan(7))} == {"trainable"}


def test_text_is_aligned_and_one_line_per_layer() -> None:
    assert as_text(layer_rows(layers(3), plan(2, LayerPlan(kernel=5), LayerPlan()))) == (
        "□ layer 3  frozen     3.00 k parameters  block.0\n"
        "■ layer 2  trainable  2.00 k parameters  block.1\n"
        "▣ layer 1  reshaped   1.00 k parameters  block.2  kernel 5\n"
        "■ head     trainable                              linear"
    )


def test_the_picture_says_what_the_plan_says() -> None:
    head = HeadPlan((HiddenLayer(8),), activation="gelu", batch_norm=False)
    found = plan(1, LayerPlan(kernel=5, width=512), head=head)
    *_, layer, last = layer_rows(layers(3), found)
    assert f"layer 1 {layer.change}" in found.describe()
    assert f"head {last.change}" in found.describe()


def test_text_joins_a_long_run_of_frozen_layers() -> None:
    lines = as_text(layer_rows(layers(60), plan(3))).splitlines()
    assert lines[0] == "□ layers 4-60  frozen     1.82 M parameters  block.0 … block.56"
    assert len(lines) == 5


def test_text_joins_a_long_run_of_equal_trainable_layers_but_not_the_head() -> None:
    lines = as_text(layer_rows(layers(60), plan(60))).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["■ layers 1-60", "■ head"]


def test_text_of_no_layers() -> None:
    assert as_text(()) == ""


class _Items(HTMLParser):
    """Count items by class and collect the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.classes: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.classes += [value or "" for name, value in attrs if tag == "li" and name == "class"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_opens_a_run_to_its_layers() -> None:
    parsed = _Items()
    parsed.feed(as_html(layer_rows(layers(60), plan(3))))
    assert parsed.classes == ["frozen", "trainable", "trainable", "trainable", "trainable"]
    assert parsed.tags.count("details") == 1
    assert parsed.tags.count("li") == 5 + 57


def test_html_marks_what_is_reshaped_and_joins_like_changes() -> None:
    parsed = _Items()
    parsed.feed(
        as_html(layer_rows(layers(16), plan(15, *[LayerPlan(width=0.5)] * 14, LayerPlan())))
    )
    assert parsed.classes == ["frozen", "trainable", "reshaped", "trainable"]
    assert parsed.tags.count("details") == 1
    assert "reshaped" in parsed.text


def test_html_escapes_labels() -> None:
    hostile = [{"index": 1, "label": "<script>alert(1)</script>", "parameters": 1}]
    parsed = _Items()
    parsed.feed(as_html(layer_rows(hostile, plan(1))))
    assert "script" not in parsed.tags
    assert "<script>alert(1)</script>" in parsed.text
