"""The server of a proxy: one process that talks to the database, for very many workers.

Optuna's own service does the storage. It has no heartbeat and no locks, so a second service on the
same port has them, as leases: heartbeats are written to the database, where workers that talk to
it directly and ``autotune status`` find them, and the lock of a study is held for as long as its
holder's stream is open.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import grpc
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import get_storage
from optuna.storages._grpc.auto_generated.api_pb2_grpc import (
    add_StorageServiceServicer_to_server,
)
from optuna.storages._grpc.servicer import OptunaStorageProxyService

from autotune.errors import LockedError, UserError, hide_passwords
from autotune.storage.beats import read_beats
from autotune.storage.database import open_database
from autotune.storage.lock import study_lock
from autotune.storage.patience import LockLostError, PatientStorage, impatiently, is_transient
from autotune.storage.proxy import wire
from autotune.storage.url import absolute_url

#: Calls at a time. A lock that is waited for is one of them, so these are fewer: whoever holds the
#: lock must be able to go on.
CALLS = 1024
WAITING = 768


class Leases:
    """The service of heartbeats and locks.

    Args:
        storage: The open storage.
        url: Its absolute URL.
    """

    def __init__(self, storage: PatientStorage, url: str) -> None:
        self._storage = storage
        self._url = url
        self._room = threading.BoundedSemaphore(WAITING)
        self._guard = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}

    def greet(self, _request: Any, _context: grpc.ServicerContext) -> dict[str, str]:
        """Say what runs here."""
        return wire.versions()

    def beat(self, request: Any, _context: grpc.ServicerContext) -> dict[str, str]:
        """Take down a heartbeat."""
        self._storage.record_heartbeat(request["trial_id"])
        return {}  # to gRPC, null is no message

    def stale(self, request: Any, _context: grpc.ServicerContext) -> list[int]:
        """Return the ids of the trials whose worker has been silent for the grace period."""
        return self._storage._get_stale_trial_ids(request["study_id"])

    def beats(self, request: Any, _context: grpc.ServicerContext) -> dict[str, Any]:
        """Return the heartbeats of trials."""
        found = asdict(read_beats(self._storage, request["trial_ids"]))
        return {**found, "age_s": list(found["age_s"].items())}  # keys of JSON are strings

    def hold(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """Hold the lock of a study until the client says that it is done, or is gone."""
        asked = next(requests)
        study, timeout_s = asked["study"], asked["timeout_s"]
        if not self._room.acquire(blocking=False):
            context.abort(grpc.StatusCode.UNAVAILABLE, f"more than {WAITING} workers wait")
        try:
            with (
                self._turn(study, timeout_s),
                study_lock(self._storage, self._url, study, timeout_s),
            ):
                if context.is_active():
                    yield {"held": study}
                    for _ in requests:
                        pass
        except LockedError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except LockLostError as error:
            context.abort(grpc.StatusCode.ABORTED, str(error))
        finally:
            self._room.release()

    @contextmanager
    def _turn(self, study: str, timeout_s: float | None) -> Iterator[None]:
        """Let one client at a time ask the database for a lock: each takes a connection."""
        with self._guard:
            turn = self._turns.setdefault(study, threading.Lock())
        if not turn.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise LockedError.of(study, timeout_s)
        try:
            yield
        finally:
            turn.release()


class Gate(grpc.ServerInterceptor):
    """Lets in who knows the password, and tells clients when the database is away.

    Args:
        password: The password.
    """

    def __init__(self, password: str) -> None:
        self._password = password.encode()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call."""
        given = dict(details.invocation_metadata).get(wire.PASSWORD, b"")
        if not isinstance(given, bytes) or not hmac.compare_digest(given, self._password):
            return grpc.unary_unary_rpc_method_handler(_refuse)
        handler = continuation(details)
        if handler is None:
            return None
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        assert handler.unary_unary is not None, "the services have no others"
        return grpc.unary_unary_rpc_method_handler(
            _answer(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )


def _refuse(_request: bytes, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong password")


def _answer(handle: Callable[..., Any]) -> Callable[..., Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            with impatiently():  # the client waits, and tries again
                return handle(request, context)
        except _OF_THE_STORAGE as error:
            context.abort(*_status(error))

    return answer


def _stream(handle: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from handle(requests, context)
        except _OF_THE_STORAGE as error:
            context.abort(*_status(error))

    return stream


#: Optuna's service tells its clients of all other errors itself.
_OF_THE_STORAGE = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, UserError)


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    code = grpc.StatusCode.UNAVAILABLE if is_transient(error) else grpc.StatusCode.INTERNAL
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return code, hide_passwords(str(getattr(cause, "orig", None) or cause or error))


def start(url: str, host: str, port: int, password: str) -> tuple[grpc.Server, int]:
    """Start a proxy.

    Args:
        url: URL of the database.
        host: Address to listen on.
        port: Port; 0 for any that is free.
        password: What clients have to say.

    Returns:
        The running server and its port.

    Raises:
        StorageError: When the storage cannot be used.
        UserError: When the address cannot be listened on.
    """
    storage = open_database(url, create=True)
    leases = Leases(storage, absolute_url(url))
    # Two servers at one port would each hold the locks of their own clients.
    options = (*wire.OPTIONS, ("grpc.so_reuseport", 0))
    server = grpc.server(
        ThreadPoolExecutor(CALLS, "call"), interceptors=[Gate(password)], options=options
    )
    add_StorageServiceServicer_to_server(OptunaStorageProxyService(get_storage(storage)), server)
    server.add_generic_rpc_handlers((_handlers(leases),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise UserError(
            f"the proxy cannot listen on {host}:{port}: the port is taken, or the address is not "
            "this machine's; choose others with --host and --port"
        ) from error
    server.start()
    return server, bound


def _handlers(leases: Leases) -> grpc.GenericRpcHandler:
    unary = {
        wire.GREET: leases.greet,
        wire.BEAT: leases.beat,
        wire.STALE: leases.stale,
        wire.BEATS: leases.beats,
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(method, wire.decode, wire.encode)
        for name, method in unary.items()
    }
    handlers[wire.HOLD] = grpc.stream_stream_rpc_method_handler(
        leases.hold, wire.decode, wire.encode
    )
    return grpc.method_handlers_generic_handler(wire.SERVICE, handlers)
