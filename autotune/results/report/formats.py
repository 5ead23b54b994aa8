"""The forms that a report can have: which one is meant, and writing it."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.study import Study

from autotune.atomic import write_bytes
from autotune.errors import UserError
from autotune.results.report.as_json import render_json
from autotune.results.report.dataframe import trials_frame
from autotune.results.report.html import render_report
from autotune.results.report.markdown import render_markdown
from autotune.storage.paths import REPORT_FORMATS
from autotune.storage.url import redact
from autotune.text import as_cell

if TYPE_CHECKING:
    from autotune.study.setup.opening import OpenStudy


def resolve_format(path: str | Path | None, given: str | None = None) -> str:
    """Settle the form of a report.

    Args:
        path: The file that is to be written, ``-`` for standard output, if it was named.
        given: The form, if it was named.

    Returns:
        One of :data:`~autotune.storage.paths.REPORT_FORMATS`: the form that was named, else the
        ending of the file, else the page.

    Raises:
        UserError: When there is no such form, or the two contradict each other.
    """
    allowed = ", ".join(REPORT_FORMATS)
    if given is not None and given not in REPORT_FORMATS:
        raise UserError(f"format: must be one of {allowed}, but got {given!r}")
    if path is None or str(path) == "-":
        return given or REPORT_FORMATS[0]
    ending = Path(path).suffix[1:].lower()
    ending = "html" if ending == "htm" else ending
    if ending in REPORT_FORMATS:
        if given not in (None, ending):
            raise UserError(
                f"format: {given} and the file {path} contradict each other; leave the format "
                f"out, or let the file end in .{given}"
            )
        return ending
    if ending and given is None:
        raise UserError(
            f"{path}: the ending of a report must be one of {allowed}; name the format for any "
            "other one: --format md"
        )
    return given or REPORT_FORMATS[0]


def write_report(
    opened: OpenStudy, path: Path | None = None, form: str = REPORT_FORMATS[0]
) -> Path:
    """Write the report of an open study; it appears whole or not at all.

    Args:
        opened: The study.
        path: The file; by default one beside the study.
        form: See :func:`render`.

    Returns:
        The path.

    Raises:
        UserError: When the form needs a package that is not installed, or the disk is full.
    """
    path = path or opened.files.report(opened.name, form)
    return write_bytes(path, render(opened.study, form, redact(opened.url)))


def render(study: Study, form: str, storage_url: str = "") -> bytes:
    """Return the report of a study in a form, as the bytes of a file.

    Args:
        study: The study, at any stage.
        form: One of :data:`~autotune.storage.paths.REPORT_FORMATS`; ``csv`` and ``parquet`` hold
            the table of :func:`~autotune.results.report.dataframe.trials_frame`.
        storage_url: URL of the storage, for the commands. A password in it is left out.

    Raises:
        UserError: When the form needs a package that is not installed.
    """
    if form == "parquet":
        return _parquet(study)
    text = {
        "html": lambda: render_report(study, storage_url),
        "md": lambda: render_markdown(study, storage_url),
        "json": lambda: render_json(study, storage_url),
        "csv": lambda: _csv(study),
    }[form]()
    return text.encode()


def _csv(study: Study) -> str:
    """Write the table for spreadsheets too: no text in it is taken for a formula."""
    frame = trials_frame(study)
    for name in frame.columns:
        if frame[name].dtype == "string":
            frame[name] = frame[name].map(as_cell, na_action="ignore")
    return str(frame.rename(columns=as_cell).to_csv(index=False, lineterminator="\n"))


def _parquet(study: Study) -> bytes:
    if find_spec("pyarrow") is None:
        raise UserError(
            "a report as parquet needs pyarrow, which is not installed; run pip install "
            "'autotune[parquet]', or write csv"
        )
    buffer = BytesIO()
    trials_frame(study).to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()
