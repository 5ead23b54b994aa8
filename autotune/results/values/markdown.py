"""Text of others in Markdown, as GitHub, GitLab and the dashboard read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from autotune.text import visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!$])")


def escape(text: str) -> str:
    r"""Write text so that Markdown shows it as it is, on one line.

    An underscore inside a word stays, as Markdown leaves it.

    Example:
        >>> escape("a|b <script> test_resnet")
        'a\\|b \\<script\\> test_resnet'
    """
    one_line = visible(" ".join(text.split())).replace("&", "&amp;")
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", _SPECIAL.sub(r"\\\1", one_line))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """Write a table."""
    rule = ("---:" if column < right else "---" for column in range(len(titles)))
    head, *body = (f"| {' | '.join(map(escape, row))} |" for row in (titles, *rows))
    return "\n".join([head, f"| {' | '.join(rule)} |", *body])


def fenced(text: str, language: str = "") -> str:
    """Write text as it is, in a fence longer than any in it."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"
