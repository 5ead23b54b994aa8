"""optuna-dashboard on the storage of a study, on the loopback address alone.

The dashboard has no authentication and can delete studies, so it is never offered to a network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna_dashboard import wsgi

from autotune.errors import UserError
from autotune.study.opening import OpenStudy

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"


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
    app = wsgi(opened.storage, artifact_store=opened.artifacts)
    try:
        server = make_server(HOST, port, app, _Server, _Handler)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({error.strerror}); choose another one with --port "
            "(make: PORT=...)"
        ) from error
    with server:
        announce(f"http://{HOST}:{port}/dashboard/studies/{opened.study._study_id}")
        server.serve_forever()
