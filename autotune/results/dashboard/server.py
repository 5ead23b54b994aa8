"""The first page and optuna-dashboard on the storage of a study, only on the loopback address.

The dashboard has no authentication and can delete studies, so it is never offered to a network
itself: ``public`` puts a server in front of it that asks for a password and is read-only.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import get_storage

from autotune import optuna_private
from autotune.errors import UserError
from autotune.results.dashboard.access import (
    Passwords,
    add_security_headers,
    caddy_only,
    local_only,
)
from autotune.results.dashboard.annotations import annotated_app
from autotune.results.dashboard.landing import LandingPage
from autotune.storage.paths import StudyPaths
from autotune.storage.rdb.connection import open_storage
from autotune.storage.rdb.retry import RetryingStorage
from autotune.storage.url import absolute_url
from autotune.study.setup.opening import OpenStudy
from autotune.study.state import attrs

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"
#: Paths of optuna-dashboard that name a study by its id.
_OF_STUDY = re.compile(r"/(?:api/studies|csv|artifacts)/(\d{1,18})(?:/.*)?")


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


@dataclass(frozen=True)
class Shown:
    """What a dashboard shows: a storage, and the page that opens first.

    Args:
        storage: The storage, without a cache of trials.
        artifacts: The files of its trials.
        url: URL of the storage.
        path: Path of the first page.
    """

    storage: RetryingStorage
    artifacts: FileSystemArtifactStore
    url: str
    path: str = "/"

    @classmethod
    def study(cls, handle: OpenStudy) -> Shown:
        """Show the storage of a study, with the page of the study first."""
        path = f"/dashboard/studies/{optuna_private.study_id(handle.study)}"
        return cls(handle.storage, handle.artifacts, handle.url, path)

    @classmethod
    def all_studies(cls, url: str) -> Shown:
        """Show a storage, with what all of its studies found first.

        Raises:
            StorageError: When the storage does not exist or cannot be used.
        """
        storage = open_storage(url)
        folder = StudyPaths.from_url(url).artifacts
        folder.mkdir(parents=True, exist_ok=True)
        return cls(storage, FileSystemArtifactStore(str(folder)), absolute_url(url))


class _Dashboard:
    """optuna-dashboard, made anew once a study has got the id of a deleted one.

    SQLite gives ids out again. Ended trials are cached by their id, by Optuna, optuna-dashboard
    and our notes: those of the deleted study would be shown as those of the new one.
    """

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._lock = threading.Lock()
        self._identities: dict[int, str] = {}
        self._app = self._make()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        app = self._app
        if match := _OF_STUDY.fullmatch(environ["PATH_INFO"]):
            study_id = int(match[1])
            identity = self._identify(study_id)
            with self._lock:
                if self._identities.setdefault(study_id, identity) != identity:
                    self._identities, self._app = {study_id: identity}, self._make()
                app = self._app
        return app(environ, start_response)

    def _make(self) -> WSGIApplication:
        # With Optuna's cache: ended trials are not read again for every request.
        storage = get_storage(self._shown.storage)
        return annotated_app(storage, self._shown.artifacts, self._shown.url)

    def _identify(self, study_id: int) -> str:
        """Return what tells a study from others that had its id before it."""
        storage = self._shown.storage
        try:
            uuid = storage.get_study_user_attrs(study_id).get(attrs.UUID)
            return str(uuid or storage.get_study_name_from_id(study_id))
        except (KeyError, ValueError):  # deleted, or damaged
            return ""


def serve(shown: Shown, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the dashboard until the process is interrupted.

    Args:
        shown: What it shows.
        port: Port on the loopback address.
        on_ready: Called with the address of the first page once the server listens.

    Raises:
        UserError: When the port is taken.
    """
    with make_dashboard_server(shown, port) as server:
        on_ready(f"http://{HOST}:{port}{shown.path}")
        server.serve_forever()


def make_dashboard_server(
    shown: Shown, port: int, token: str = "", passwords: Passwords | None = None
) -> WSGIServer:
    """Make the server of the dashboard.

    Args:
        shown: What it shows.
        port: Port on the loopback address; 0 for any free one.
        token: The token of Caddy. Without ``passwords`` all users of this machine may read and
            write, and no page of another site.
        passwords: The passwords that Caddy asks for.

    Raises:
        UserError: When the port is taken.
    """
    app = LandingPage(shown.storage, shown.url).before(_Dashboard(shown))
    app = local_only(app) if passwords is None else caddy_only(app, token, passwords)
    try:
        return make_server(HOST, port, add_security_headers(app), _Server, _Handler)
    except OSError as error:
        raise port_error(port, error) from error


def port_error(port: int, error: OSError) -> UserError:
    """Return the error of a port that cannot be used."""
    reason = os.strerror(error.errno) if error.errno else error
    return UserError(
        f"port {port} cannot be used ({reason}); choose another one with --port (make: PORT=...)"
    )
