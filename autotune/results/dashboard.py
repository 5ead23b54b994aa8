"""optuna-dashboard on the storage of a study, on the loopback address alone.

The dashboard has no authentication and can delete studies, so it is never offered to a network by
itself: ``public`` puts a server in front that asks for a password and lets nothing be written.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autotune.errors import UserError
from autotune.results.annotated import annotated
from autotune.study.opening import OpenStudy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"
#: The header in which a server in front shows its token.
TOKEN_HEADER = "X-Autotune-Token"


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def serve(opened: OpenStudy, port: int, announce: Callable[[str], None]) -> None:
    """Serve the dashboard until the process is interrupted.

    Args:
        opened: A study of the storage; its artifacts are shown.
        port: Port on the loopback address.
        announce: Told the address of the study once the server listens.

    Raises:
        UserError: When the port is taken.
    """
    with listen(opened, port) as server:
        announce(f"http://{HOST}:{port}{page_of(opened)}")
        server.serve_forever()


def listen(opened: OpenStudy, port: int, token: str | None = None) -> WSGIServer:
    """Make the server of the dashboard.

    Args:
        opened: A study of the storage; its artifacts are shown.
        port: Port on the loopback address; 0 for one that is free.
        token: What requests must have in ``TOKEN_HEADER``. Every user of this machine reaches its
            loopback address; without a token they all may read and write.

    Raises:
        UserError: When the port is taken.
    """
    # The storage above Optuna's cache: finished trials are not read again with every look.
    storage = opened.study._storage
    app = annotated(storage, opened.artifacts, opened.url)
    try:
        return make_server(HOST, port, _guarded(app, token) if token else app, _Server, _Handler)
    except OSError as error:
        raise port_error(port, error) from error


def page_of(opened: OpenStudy) -> str:
    """Return the path of a study's page."""
    return f"/dashboard/studies/{opened.study._study_id}"


def port_error(port: int, error: OSError) -> UserError:
    """Say that a port cannot be used, and the way out."""
    reason = os.strerror(error.errno) if error.errno else error
    return UserError(
        f"port {port} cannot be used ({reason}); choose another one with --port (make: PORT=...)"
    )


def _guarded(app: WSGIApplication, token: str) -> WSGIApplication:
    key = f"HTTP_{TOKEN_HEADER.upper().replace('-', '_')}"

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        shown = environ.get(key, "").encode("latin-1")
        if not secrets.compare_digest(shown, token.encode("latin-1")):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"this port is for the server in front alone\n"]
        return app(environ, start_response)

    return guarded
