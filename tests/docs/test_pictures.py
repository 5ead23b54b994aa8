"""What the script that takes the pictures makes of a terminal's output."""

from __future__ import annotations

from pathlib import Path

from docs.scripts import pictures

UP = "\x1b[2K\x1b[1A\x1b[2K"


def test_a_terminal_shows_what_was_drawn_last() -> None:
    written = ["before\n", "\x1b[?25la\r\nb", f"\r{UP}c\nd", f"{UP}end\n"]
    shown = [pictures.screen(written[: count + 1]) for count in range(4)]
    assert shown == ["before", "before\na\nb", "before\nc\nd", "before\nend"]


def test_the_live_view_is_taken_while_trials_run() -> None:
    written = ["", "1/4 finished", "\x1b[2K2/4 finished", "\x1b[2K3/4 finished", "\x1b[2Kbest 9 %"]
    assert pictures.during(written) == "2/4 finished"
    assert pictures.during(["no trials\n"]) == "no trials"


def test_a_picture_of_a_terminal_loads_nothing(tmp_path: Path) -> None:
    path = pictures.draw("a \x1b[1mbold\x1b[0m word", "autotune run digits", tmp_path / "run.svg")
    text = path.read_text()
    assert "bold" in text and "autotune&#160;run&#160;digits" in text
    assert "url(http" not in text and "@font-face" not in text
