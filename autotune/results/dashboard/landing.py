"""The first page of the dashboard: what every study found, with links to the rest.

It answers ``/`` and ``/report/<study id>``; everything else is optuna-dashboard's. Its links are
relative, so that it also works in a folder of a web server.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import optuna

from autotune.errors import FormatError, UserError
from autotune.results.overview import (
    BROKEN,
    OTHER_PROGRAM,
    UNREADABLE,
    StudyOverview,
    StudyOverviews,
)
from autotune.results.report.html import environment, render_html
from autotune.results.study_results import StudyResults
from autotune.storage.commands import command_line, full_storage_option
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import storage_errors
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.url import redact
from autotune.study.state import attrs
from autotune.text import error_line, plural
from autotune.version import describe_version

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Seconds for which studies are read before the page is shown without the others.
READ_S = 1.5
#: Seconds until the page is read again: while studies are still unread, one runs, none runs.
UNREAD_S, RUNNING_S, RESTING_S = 1, 10, 30
_REPORT = re.compile(r"/report/(\d{1,18})/?")
#: A folder of a web server, as it names it in a header.
_PREFIX = re.compile(r"(/[\w.~-]+)+/?")
_VERDICTS = {True: ("better", "yes"), False: ("not better", "no"), None: ("not known", "unknown")}
_EVIDENCE = {"test": "test split", "confirmed": "several seeds", "search": "search alone"}
#: State -> class of its row.
_KINDS = {"running": "running", "ended": "ended", "stopped": "ended", OTHER_PROGRAM: "ended"}


class LandingPage:
    """The first page of a storage, and the reports of its studies.

    Args:
        storage: The storage, without a cache of trials.
        url: Its URL; a password in it is left out.
    """

    def __init__(self, storage: RetryingStorage, url: str) -> None:
        self._storage = storage
        self._url = url
        self._overviews = StudyOverviews(storage, url)
        #: A report takes seconds: one after the other.
        self._rendering = threading.Lock()

    def before(self, app: WSGIApplication) -> WSGIApplication:
        """Return an application that answers the paths of this page, and leaves others to it."""

        def respond(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            match = _REPORT.fullmatch(path)
            if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or not (
                path in ("", "/") or match
            ):
                return app(environ, start_response)
            if match:
                status, page = self.report(int(match[1]))
            else:
                status, page = self.page(_base(environ))
            headers = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")]
            content = page.encode(errors="replace")
            start_response(status, [*headers, ("Content-Length", str(len(content)))])
            return [content] if environ["REQUEST_METHOD"] == "GET" else []

        return respond

    def page(self, base: str = "") -> tuple[str, str]:
        """Return the HTTP status and the page with all studies."""
        try:
            studies = self._overviews.read(READ_S)
        except UserError as error:
            text = f"The storage cannot be read. This page tries again. {error}"
            return "503 Service Unavailable", self._render(base, [], "No connection", text)
        return "200 OK", self._render(base, studies, _heading(studies))

    def report(self, study_id: int) -> tuple[str, str]:
        """Return the HTTP status and the report of a study as it is now."""
        try:
            with storage_errors(self._url), self._rendering:
                name = self._storage.get_study_name_from_id(study_id)
                study = optuna.load_study(study_name=name, storage=self._storage)
                if attrs.DEFINITION not in study.user_attrs:
                    text = f"The study {name!r} was not made by autotune: it has no report."
                    return "404 Not Found", self._message("No report", text)
                attrs.check_version(study)
                results = StudyResults.from_study(study, StudyPaths.from_url(self._url).artifacts)
                return "200 OK", render_html(results, redact(self._url))
        except FormatError as error:
            return "500 Internal Server Error", self._message("No report", str(error))
        except UserError as error:
            return "503 Service Unavailable", self._message("No connection", str(error))
        except BROKEN as error:
            if self._is_there(study_id):
                text = f"The report cannot be made: {error_line(error)}. 'autotune doctor' may "
                return "500 Internal Server Error", self._message("No report", f"{text}say more.")
            text = "There is no such study; it may have been deleted a moment ago."
            return "404 Not Found", self._message("No such study", text)

    def _is_there(self, study_id: int) -> bool:
        try:
            self._storage.get_study_name_from_id(study_id)
        except KeyError:
            return False
        return True

    def _message(self, heading: str, text: str) -> str:
        return self._render("../", [], heading, text)

    def _render(
        self, base: str, studies: Sequence[StudyOverview], heading: str, problem: str = ""
    ) -> str:
        option = full_storage_option(self._url)
        own = command_line("autotune", "run", "folder", f" dataset=path/to/images{option}")
        running = any(study.workers for study in studies)
        unread = any(study.outcome is None for study in studies)
        context = {
            "title": f"{heading} – autotune",
            "heading": heading,
            "storage": redact(self._url),
            "problem": problem,
            "seconds": UNREAD_S if unread else RUNNING_S if running else RESTING_S,
            "base": base,
            "rows": [_row(study) for study in studies],
            "command": command_line("autotune", "run", "digits", option),
            "command_own": own,
            "version": describe_version(),
        }
        return environment().get_template("studies.html.j2").render(context)


def _base(environ: WSGIEnvironment) -> str:
    """Return the folder of the page, where a web server in front names it; else it is empty."""
    prefix = environ.get("HTTP_X_FORWARDED_PREFIX") or environ.get("SCRIPT_NAME") or ""
    return f"{prefix.rstrip('/')}/" if _PREFIX.fullmatch(prefix) else ""


def _heading(studies: Sequence[StudyOverview]) -> str:
    running = sum(study.state in ("running", "stopping") for study in studies)
    if not studies:
        return "No study yet"
    return plural(len(studies), "study", "studies") + (f", {running} running" if running else "")


def _row(study: StudyOverview) -> dict[str, Any]:
    """Return what the template shows of a study."""
    outcome, is_ours = study.outcome, study.state != OTHER_PROGRAM
    state = study.state
    if study.workers:
        state += f", {plural(study.workers, 'worker')}"
    row: dict[str, Any] = {
        "name": study.name,
        "dashboard": f"dashboard/studies/{study.study_id}",
        "report": f"report/{study.study_id}" if is_ours and study.state != "not made" else "",
        "kind": _KINDS.get(study.state, "warn"),
        "state": state,
        "reason": study.reason,
        "trials": study.finished,
        "last": "",
        "answer": "…",
        "plan": "",
        "evidence": "",
        "verdict": "",
    }
    if study.last:
        moment = datetime.fromtimestamp(study.last, UTC)
        row["last"] = f"{moment.astimezone():%Y-%m-%d %H:%M %Z}"
        row["last_iso"] = moment.isoformat()
    if study.state == UNREADABLE:
        row |= {"answer": "Cannot be read", "reason": "'autotune doctor' may say more"}
        row["plan"] = study.reason
    elif study.state == "no result":
        row["answer"] = "No result"
    elif outcome is not None:
        text, end, plan = outcome.text.partition("): ")  # where the numbers end
        row |= {"answer": text[:1].upper() + text[1:] + end[:1], "plan": plan}
        row["evidence"] = _EVIDENCE.get(outcome.evidence, "")
        if row["evidence"]:
            row["verdict"], row["verdict_kind"] = _VERDICTS[outcome.is_better]
    return row
