"""The key ``notify``: what it takes, and what of it may be shown, because it may hold a secret."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from autotune.config.fields import FieldRule


def notification() -> FieldRule:
    """Accept an ``http`` or ``https`` URL, a shell command, or null; it may hold a secret."""
    takes = "an `https://` or `http://` URL, a shell command, or `null`"

    def check(value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            kind = "an empty text" if isinstance(value, str) else f"a {type(value).__name__}"
            raise ValueError(f"must be {takes.replace('`', '')}, but got {kind}")
        scheme, separator, _ = value.strip().partition("://")
        if separator and re.fullmatch(r"[\w+.-]+", scheme):
            problem = f"a URL of {scheme}://"
            if scheme.lower() in ("http", "https"):
                problem = _web_url_problem(value.strip())
            if problem:
                raise ValueError(f"must be {takes.replace('`', '')}, but got {problem}")
        return value.strip()

    return FieldRule(check, takes=takes)


def _web_url_problem(url: str) -> str:
    """Return what is wrong with an address, without the address, which may hold a secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None:
        return "a URL without a usable host and port"
    return "a URL with a blank" if re.search(r"\s", url) else ""


def is_url(target: str) -> bool:
    """Tell whether a notification goes to a URL, and not to a command."""
    return re.match("https?://", target, re.IGNORECASE) is not None


def masked(target: str) -> str:
    """Return what a message may show of a target: the host of a URL, the program of a command.

    Example:
        >>> masked("https://hooks.example.com/services/secret"), masked("curl -H secret")
        ('https://hooks.example.com/***', 'the command curl ***')
    """
    if not is_url(target):
        program, *others = target.split(None, 1)
        shown = [program] if re.fullmatch(r"[\w./~+-]+", program) else ["***"]
        return " ".join(["the command", *shown, *["***" for _ in others if shown != ["***"]]])
    try:
        parts = urlsplit(target)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:  # no address, or no port
        return "the URL http***"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}/***"
