"""The first page and optuna-dashboard on the storage of a study, only on the loopback address.

The dashboard has no authentication and can delete studies, so it is never offered to a network
itself: ``public`` puts a server in front of it that asks for a password and is read-only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import BaseStorage, get_storage

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

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


@dataclass(frozen=True)
class Shown:
    """What a dashboard shows: a storage, and the page that opens first.

    Args:
        storage: The storage with Optuna's cache: finished trials are not read again for every
            request.
        artifacts: The files of its trials.
        plain: The same without the cache.
        url: URL of the storage.
        path: Path of the first page.
    """

    storage: BaseStorage
    artifacts: FileSystemArtifactStore
    plain: RetryingStorage
    url: str
    path: str = "/"

    @classmethod
    def study(cls, handle: OpenStudy) -> Shown:
        """Show the storage of a study, with the page of the study first."""
        path = f"/dashboard/studies/{optuna_private.study_id(handle.study)}"
        storage = optuna_private.storage(handle.study)
        return cls(storage, handle.artifacts, handle.storage, handle.url, path)

    @classmethod
    def all_studies(cls, url: str) -> Shown:
        """Show a storage, with what all of its studies found first.

        Raises:
            StorageError: When the storage does not exist or cannot be used.
        """
        storage = open_storage(url)
        folder = StudyPaths.from_url(url).artifacts
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = FileSystemArtifactStore(str(folder))
        return cls(get_storage(storage), artifacts, storage, absolute_url(url))


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
    app: WSGIApplication = annotated_app(shown.storage, shown.artifacts, shown.url)
    app = LandingPage(shown.plain, shown.url).before(app)
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
