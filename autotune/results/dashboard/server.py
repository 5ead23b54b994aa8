"""optuna-dashboard on the storage of a study, only on the loopback address.

The dashboard has no authentication and can delete studies, so it is never offered to a network
itself: ``public`` puts a server in front of it that asks for a password and is read-only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autotune import optuna_private
from autotune.errors import UserError
from autotune.results.dashboard.access import (
    Passwords,
    add_security_headers,
    caddy_only,
    local_only,
)
from autotune.results.dashboard.annotations import annotated_app
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


def serve(handle: OpenStudy, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the dashboard until the process is interrupted.

    Args:
        handle: A study of the storage; its artifacts are shown.
        port: Port on the loopback address.
        on_ready: Called with the address of the study once the server listens.

    Raises:
        UserError: When the port is taken.
    """
    with make_dashboard_server(handle, port) as server:
        on_ready(f"http://{HOST}:{port}{study_path(handle)}")
        server.serve_forever()


def make_dashboard_server(
    handle: OpenStudy, port: int, token: str = "", passwords: Passwords | None = None
) -> WSGIServer:
    """Make the server of the dashboard.

    Args:
        handle: A study of the storage; its artifacts are shown.
        port: Port on the loopback address; 0 for any free one.
        token: The token of Caddy. Without ``passwords`` all users of this machine may read and
            write, and no page of another site.
        passwords: The passwords that Caddy asks for.

    Raises:
        UserError: When the port is taken.
    """
    # The storage with Optuna's cache: finished trials are not read again for every request.
    storage = optuna_private.storage(handle.study)
    app: WSGIApplication = annotated_app(storage, handle.artifacts, handle.url)
    app = local_only(app) if passwords is None else caddy_only(app, token, passwords)
    try:
        return make_server(HOST, port, add_security_headers(app), _Server, _Handler)
    except OSError as error:
        raise port_error(port, error) from error


def study_path(handle: OpenStudy) -> str:
    """Return the path of a study's page."""
    return f"/dashboard/studies/{optuna_private.study_id(handle.study)}"


def port_error(port: int, error: OSError) -> UserError:
    """Return the error of a port that cannot be used."""
    reason = os.strerror(error.errno) if error.errno else error
    return UserError(
        f"port {port} cannot be used ({reason}); choose another one with --port (make: PORT=...)"
    )
