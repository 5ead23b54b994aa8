"""What the server of a proxy and its clients agree on.

Beside Optuna's own service there is one for leases, which Optuna's proxy does not have: heartbeats
and the locks of studies. Its messages are JSON.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import grpc

#: Port of a proxy whose URL names none.
PORT = 13000
SERVICE = "autotune.Leases"
#: Who are you? Versions of what must be the same on both sides.
GREET = "Greet"
#: Hold the lock of a study for as long as the stream is open in both directions.
HOLD = "Hold"
#: Take down the heartbeat of a trial.
BEAT = "Beat"
#: Trials of a study whose worker has been silent for the grace period.
STALE = "Stale"
#: Heartbeats of trials, and what time it is.
BEATS = "Beats"
#: Metadata in which a client says its password; the ending lets it have any characters.
PASSWORD = "autotune-password-bin"

#: A peer that answers no ping for so long has lost its leases: its connection is closed. Pings are
#: answered by threads of gRPC itself, also while Python computes; not by a process that is stopped
#: or a machine that is gone.
PING_EVERY_S = 10
PING_PATIENCE_S = 20
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 1000 * PING_EVERY_S),
    ("grpc.keepalive_timeout_ms", 1000 * PING_PATIENCE_S),
    ("grpc.http2.ping_timeout_ms", 1000 * PING_PATIENCE_S),  # else it waits a minute
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500 * PING_EVERY_S),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
)

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def path_of(method: str) -> str:
    """Return the name by which gRPC knows a method of the service."""
    return f"/{SERVICE}/{method}"


def encode(message: Any) -> bytes:
    """Write a message."""
    return json.dumps(message).encode()


def decode(data: bytes) -> Any:
    """Read a message."""
    return json.loads(data)


def versions() -> dict[str, str]:
    """Return the versions of what must be the same on both sides."""
    return {name: version(name) for name in ("autotune", "optuna")}


def is_away(error: BaseException) -> bool:
    """Tell whether an error says that a proxy, or the database behind it, cannot be reached."""
    return isinstance(error, grpc.RpcError) and error.code() in _AWAY


def reason_of(error: grpc.RpcError) -> str:
    """Return in words what a call ended with."""
    return " ".join(f"{error.details() or error.code().name}".split())
