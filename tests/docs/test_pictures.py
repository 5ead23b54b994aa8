"""What the script that takes the pictures makes of a terminal's output."""

from __future__ import annotations

from pathlib import Path

from docs.scripts import pictures

UP = "\x1b[2K\x1b[1A\x1b[2K"


def test_a_terminal_shows_what_was_drawn_last() -> None:
    output = [
        (1.0, "before\n"),
        (2.0, "\x1b[?25la\r\nb"),
        (6.0, f"\r{UP}c\nd"),
        (10.0, f"{UP}end\n"),
    ]
    assert pictures.during(output, 0.1) == "before"
    assert pictures.during(output, 0.5) == "before\na\nb"
    assert pictures.during(output) == "before\nc\nd"
    assert pictures.during(output, 1) == "before\nend"


def test_a_picture_of_a_terminal_loads_nothing(tmp_path: Path) -> None:
    path = pictures.draw("a \x1b[1mbold\x1b[0m word", "autotune run digits", tmp_path / "run.svg")
    text = path.read_text()
    assert "bold" in text and "autotune&#160;run&#160;digits" in text
    assert "url(http" not in text and "@font-face" not in text
