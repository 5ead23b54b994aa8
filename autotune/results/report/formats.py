"""The formats of a report: which one is meant, and writing it."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.atomic import write_bytes
from autotune.errors import UserError, place_as_user_error
from autotune.results.report.as_json import render_json
from autotune.results.report.dataframe import trials_frame
from autotune.results.report.epoch_table import epochs_frame
from autotune.results.report.html import render_html
from autotune.results.report.images import describe_missing, predictions_csv
from autotune.results.report.markdown import render_markdown
from autotune.results.report.reproduction import study_file
from autotune.results.study_results import StudyResults
from autotune.storage.paths import EPOCHS, REPORT_FORMATS
from autotune.storage.url import redact
from autotune.text import as_cell

if TYPE_CHECKING:
    import pandas as pd

    from autotune.study.setup.opening import OpenStudy

#: The format of what was predicted for single images; its files end in ``.csv``.
PREDICTIONS = "predictions"
#: All formats; those that are not the ending of their files must be named.
FORMATS = (*REPORT_FORMATS, EPOCHS, PREDICTIONS)


def resolve_format(path: str | Path | None, given: str | None = None) -> str:
    """Return the format of a report: the given one, else the ending of the file, else HTML.

    Args:
        path: The file to write, ``-`` for standard output, if it was named.
        given: The format, if it was named.

    Raises:
        UserError: When there is no such format, or the two contradict each other.
    """
    allowed = ", ".join(FORMATS)
    if given is not None and given not in FORMATS:
        raise UserError(f"format: must be one of {allowed}, but got {given!r}")
    ending = "" if path is None or str(path) == "-" else Path(path).suffix[1:].lower()
    ending = {"htm": "html", "yml": "yaml"}.get(ending, ending)
    own = "csv" if given in (EPOCHS, PREDICTIONS) else given
    if ending in REPORT_FORMATS and own not in (None, ending):
        raise UserError(
            f"format: {given} and the file {path} contradict each other; leave the format out, or "
            f"let the file end in .{own}"
        )
    if ending and ending not in REPORT_FORMATS and given is None:
        raise UserError(
            f"{path}: the ending of a report must be one of {', '.join(REPORT_FORMATS)}; name the "
            "format for any other one: --format md"
        )
    return given or ending or REPORT_FORMATS[0]


def write_report(
    handle: OpenStudy, path: Path | None = None, format: str = REPORT_FORMATS[0]
) -> Path:
    """Write the report of an open study; the file appears complete or not at all.

    Args:
        handle: The study.
        path: The file, folders above it are made; by default one beside the study.
        format: See :func:`render`.

    Returns:
        The path.

    Raises:
        UserError: When the format needs a package that is not installed, or the disk is full.
    """
    results = StudyResults.from_study(handle.study, handle.files.artifacts)
    if path is None and format == PREDICTIONS:
        path = handle.files.predictions(handle.name)
    path = path or handle.files.report(handle.name, format)
    content = render(results, format, redact(handle.url))
    with place_as_user_error(path):
        return write_bytes(path, content)


def write_predictions(handle: OpenStudy) -> Path | None:
    """Write ``predictions.csv`` beside the reports; ``None`` where a study has no predictions.

    Raises:
        UserError: When it cannot be written.
    """
    results = StudyResults.from_study(handle.study, handle.files.artifacts)
    path, text = handle.files.predictions(handle.name), predictions_csv(results)
    if not text:
        return None
    with place_as_user_error(path):
        return write_bytes(path, text.encode())


def refresh_report(handle: OpenStudy) -> Path | None:
    """Write the page and the table beside a study anew, if ``run`` has written the page.

    Returns:
        Path of the page; ``None`` where there is none.

    Raises:
        UserError: When a file cannot be written.
    """
    if not handle.files.report(handle.name, REPORT_FORMATS[0]).exists():
        return None
    write_predictions(handle)
    return write_report(handle)


def render(results: StudyResults, format: str, storage_url: str = "") -> bytes:
    """Return the report of a study in a format, as the bytes of a file.

    Args:
        results: The study, at any stage.
        format: One of :data:`FORMATS`; ``csv`` and ``parquet`` hold the table of
            :func:`~autotune.results.report.dataframe.trials_frame`, ``epochs`` that of
            :func:`~autotune.results.report.epoch_table.epochs_frame`, ``predictions`` single
            images.
        storage_url: URL of the storage, for the commands. A password in it is left out.

    Raises:
        UserError: When the format needs a package that is not installed, or the study has no
            predictions.
    """
    match format:
        case "predictions":
            text = predictions_csv(results)
            if not text:
                raise _no_predictions(results, storage_url)
        case "parquet":
            return _render_parquet(results)
        case "csv":
            text = _render_csv(trials_frame(results))
        case "epochs":
            text = _render_csv(epochs_frame(results))
        case "json":
            text = render_json(results, storage_url)
        case "yaml":
            text = study_file(results, storage_url)
        case "md":
            text = render_markdown(results, storage_url)
        case _:
            text = render_html(results, storage_url)
    return text.encode()


def _no_predictions(results: StudyResults, storage_url: str) -> UserError:
    reason, command = describe_missing(results, storage_url)
    missing = "predictions: there are none yet, because no trial is complete; run the study first"
    return UserError(f"{reason} {command}" if reason else missing)


def _render_csv(frame: pd.DataFrame) -> str:
    """Write a table for spreadsheets too: no text in it is taken for a formula."""
    for name in frame.columns:
        if frame[name].dtype == "string":
            frame[name] = frame[name].map(as_cell, na_action="ignore")
    return str(frame.rename(columns=as_cell).to_csv(index=False, lineterminator="\n"))


def _render_parquet(results: StudyResults) -> bytes:
    if find_spec("pyarrow") is None:
        raise UserError(
            "a report as parquet needs pyarrow, which is not installed; run pip install "
            "'autotune[parquet]', or write csv"
        )
    buffer = BytesIO()
    trials_frame(results).to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()
