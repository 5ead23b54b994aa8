"""A real proxy, in this process, that can be stopped and started again."""

from __future__ import annotations

from types import TracebackType
from urllib.parse import quote

import grpc

from autotune.storage.proxy import server

PASSWORD = "geheimes Wört"


class Proxy:
    """A proxy of a database, for as long as the context lasts.

    Args:
        database: URL of the database.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._port = 0
        self._server: grpc.Server | None = None

    @property
    def url(self) -> str:
        """Its URL, with the password."""
        return f"grpc://:{quote(PASSWORD)}@127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, at the port that it has had."""
        self._server, self._port = server.start(self._database, "127.0.0.1", self._port, PASSWORD)

    def stop(self) -> None:
        """Stop it at once: calls that are being answered break off."""
        assert self._server is not None
        self._server.stop(None).wait()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
