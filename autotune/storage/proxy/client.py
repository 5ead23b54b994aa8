"""The storage of a worker that talks to a proxy in place of the database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from optuna.storages import GrpcStorageProxy
from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
from optuna.storages._grpc.client import GrpcClientCache
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.errors import LockedError, StorageError
from autotune.storage.patience import LockLostError, impatiently, patient, waits
from autotune.storage.proxy import wire

#: How long the first call waits for an answer.
GREETING_S = 10.0

StaleTrialCallback = Callable[[Study, FrozenTrial], None]


@waits("get_all_trials")
class ProxyStorage(GrpcStorageProxy, BaseHeartbeat):
    """Optuna's client of a proxy, with the heartbeats and the locks that it lacks.

    Args:
        host: Host of the proxy.
        port: Its port.
        password: What it asks for.
        interval_s: Seconds between heartbeats.
        on_stale_trial: Called with every trial whose worker has gone silent.
    """

    def __init__(
        self,
        host: str,
        port: int,
        password: str,
        interval_s: int,
        on_stale_trial: StaleTrialCallback | None = None,
    ) -> None:
        self._password = password
        self._interval_s = interval_s
        self._on_stale_trial = on_stale_trial
        super().__init__(host=host, port=port)

    def _setup(self) -> None:
        self._bare = grpc.insecure_channel(f"{self._host}:{self._port}", options=wire.OPTIONS)
        self._channel = grpc.intercept_channel(self._bare, _SayPassword(self._password))
        self._stub = StorageServiceStub(self._channel)
        self._cache = GrpcClientCache(self._stub)
        self._calls = {
            name: self._channel.unary_unary(wire.path_of(name), wire.encode, wire.decode)
            for name in (wire.GREET, wire.BEAT, wire.STALE, wire.BEATS)
        }
        self._hold = self._channel.stream_stream(wire.path_of(wire.HOLD), wire.encode, wire.decode)

    def close(self) -> None:
        """Close the connection."""
        self._bare.close()

    def greet(self) -> None:
        """Make sure that there is a proxy which takes this client.

        Raises:
            StorageError: When its versions are not those of here.
            grpc.RpcError: When it does not answer, or does not let this client in.
        """
        theirs = self._calls[wire.GREET]({}, timeout=GREETING_S)
        if theirs != wire.versions():
            raise StorageError(
                f"storage: the proxy runs {_in_words(theirs)}, and this machine "
                f"{_in_words(wire.versions())}; both must be the same"
            )

    def record_heartbeat(self, trial_id: int) -> None:
        """Have the heartbeat of a trial taken down."""
        self._calls[wire.BEAT]({"trial_id": trial_id}, timeout=self._interval_s)

    @patient
    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        found: list[int] = self._calls[wire.STALE]({"study_id": study_id})
        return found

    def get_heartbeat_interval(self) -> int:
        """Return the seconds between heartbeats."""
        return self._interval_s

    def get_heartbeat_stale_trial_callback(self) -> StaleTrialCallback | None:
        """Return what is called with every trial whose worker has gone silent."""
        return self._on_stale_trial

    @patient
    def read_beats(self, trial_ids: Iterable[int]) -> dict[str, Any]:
        """Read heartbeats; see :func:`autotune.storage.beats.read_beats`."""
        found: dict[str, Any] = self._calls[wire.BEATS]({"trial_ids": list(trial_ids)})
        return {**found, "age_s": dict(found["age_s"])}

    @contextmanager
    def hold(self, study: str, timeout_s: float | None) -> Iterator[None]:
        """Hold the lock of a study; see :func:`autotune.storage.lock.study_lock`."""
        done = threading.Event()

        def requests() -> Iterator[Any]:
            yield {"study": study, "timeout_s": timeout_s}
            done.wait()

        answers = self._hold(requests())
        try:
            _wait_for(answers)
            with impatiently():
                yield
            done.set()
            _let_go(answers, study)
        finally:
            done.set()
            answers.cancel()


def _in_words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _wait_for(answers: Iterator[Any]) -> None:
    """Wait until a lock is held."""
    try:
        next(answers)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
            raise LockedError(error.details()) from error
        raise


def _let_go(answers: Iterator[Any], study: str) -> None:
    """Give a lock back; the proxy says whether it was held until now."""
    try:
        for _ in answers:
            pass
    except grpc.RpcError as error:
        raise LockLostError(f"the lock of {study!r}: {wire.reason_of(error)}") from error


class _Details(NamedTuple):
    """How a call is made, as interceptors hand it on."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _SayPassword(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    def __init__(self, password: str) -> None:
        self._said = ((wire.PASSWORD, password.encode()),)

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        return continuation(self._with_password(details), request)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], details: grpc.ClientCallDetails, requests: Any
    ) -> Any:
        return continuation(self._with_password(details), requests)

    def _with_password(self, details: grpc.ClientCallDetails) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            (*(details.metadata or ()), *self._said),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
