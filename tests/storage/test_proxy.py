"""A proxy: who is let in, what it holds for whom, and what happens when something goes away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import optuna
import pytest
from optuna.storages._grpc.server import make_server
from optuna.trial import TrialState

from autotune.errors import LockedError, StorageError, UserError
from autotune.storage import patience
from autotune.storage.backup import backup
from autotune.storage.beats import read_beats
from autotune.storage.check import check
from autotune.storage.database import GRACE_PERIOD_S, open_storage
from autotune.storage.heartbeat import Heartbeat
from autotune.storage.lock import study_lock
from autotune.storage.patience import LockLostError, is_transient
from autotune.storage.proxy import server, wire
from autotune.storage.schema import pending_upgrade
from autotune.storage.transfer import copy_studies
from autotune.storage.url import absolute_url, redact
from tests.support.postgres import Server, start_server
from tests.support.proxy import PASSWORD, Proxy

pytestmark = [
    pytest.mark.filterwarnings("ignore:Heartbeat of storage"),
    pytest.mark.usefixtures("closed_connections"),
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(database) as found:
        yield found


# Who is let in


@pytest.mark.parametrize("password", ["", "x", "geheimes W%C3%B6rt%20"])
def test_a_wrong_password_is_refused(proxy: Proxy, password: str) -> None:
    url = re.sub(":[^:@]*@", f":{password}@", proxy.url)
    with pytest.raises(StorageError, match="wrong password; give that of the proxy") as caught:
        open_storage(url)
    assert not is_transient(caught.value)
    # Neither service answers: Optuna's own client has no password at all.
    channel = grpc.insecure_channel(f"127.0.0.1:{proxy.url.rpartition(':')[2]}")
    with channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/optuna.StorageService/GetAllStudies")(b"")
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_plain_proxy_of_optuna_is_refused(database: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        plain = make_server(open_storage(database, create=True), "127.0.0.1", 0, pool)
        port = plain.add_insecure_port("127.0.0.1:0")
        plain.start()
        with pytest.raises(StorageError, match="no proxy that 'autotune storage proxy' has start"):
            open_storage(f"grpc://127.0.0.1:{port}")
        plain.stop(None).wait()


def test_another_version_is_refused(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = wire.versions()
    answers = iter([theirs])  # to the server; then this side
    monkeypatch.setattr(
        wire, "versions", lambda: next(answers, {"autotune": theirs["autotune"], "optuna": "9.9"})
    )
    with pytest.raises(
        StorageError, match=r"the proxy runs .*optuna 5.* and .* optuna 9\.9; both"
    ):
        open_storage(proxy.url)


@pytest.mark.parametrize(
    "url", ["grpc://", "grpc://host/database", "grpc://:a@b@host", "grpc://host?x=1"]
)
def test_the_url_of_a_proxy(url: str) -> None:
    with pytest.raises(StorageError, match=r"grpc://:password@host:port"):
        open_storage(url)


def test_its_password_is_not_shown(proxy: Proxy) -> None:
    assert "geheim" in absolute_url(proxy.url)
    assert "geheim" not in redact(proxy.url)


def test_nobody_is_there() -> None:
    start = time.monotonic()
    with pytest.raises(StorageError, match="is the server running") as caught:
        open_storage("grpc://:x@127.0.0.1:1")
    assert is_transient(caught.value)  # a worker waits for it
    assert time.monotonic() - start < 5


def test_what_needs_the_database_says_so(proxy: Proxy, tmp_path: Path) -> None:
    optuna.create_study(storage=open_storage(proxy.url))
    needs = pytest.raises(StorageError, match="needs the database itself")
    with needs:
        backup(proxy.url, tmp_path / "saved.db")
    with needs:
        list(check(proxy.url))
    with needs:
        pending_upgrade(proxy.url)
    with needs:
        copy_studies(proxy.url, f"sqlite:///{tmp_path}/other.db", (), None, print)
    with needs:
        copy_studies(f"sqlite:///{tmp_path}/study.db", proxy.url, (), None, print)
    with needs:
        server.start(proxy.url, "127.0.0.1", 0, PASSWORD)


def test_a_port_that_is_taken(proxy: Proxy, database: str) -> None:
    port = int(proxy.url.rpartition(":")[2])
    with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
        server.start(database, "127.0.0.1", port, PASSWORD)


# Leases


def test_its_heartbeats_are_those_of_the_database(proxy: Proxy, database: str) -> None:
    storage = open_storage(proxy.url)
    study = optuna.create_study(storage=storage)
    trial = study.ask()._trial_id
    assert read_beats(storage, [trial]).age_s == {}
    with Heartbeat(storage, trial):
        end = time.monotonic() + 20
        while not (found := read_beats(open_storage(database), [trial])).age_s:
            assert time.monotonic() < end
    through = read_beats(storage, [trial])
    assert through.age_s[trial] == pytest.approx(found.age_s[trial], abs=5)
    assert through.now == pytest.approx(time.time(), abs=5)
    assert abs(through.ahead_s) < 5


def test_locks_are_those_of_the_database(proxy: Proxy, database: str) -> None:
    through, direct = open_storage(proxy.url), open_storage(database)
    with study_lock(through, proxy.url, "s"):
        with (
            pytest.raises(LockedError, match=r"more than 0\.2 s"),
            study_lock(direct, database, "s", 0.2),
        ):
            pass
        with (
            pytest.raises(LockedError, match=r"more than 0\.2 s"),
            study_lock(open_storage(proxy.url), proxy.url, "s", 0.2),
        ):
            pass
    with (
        study_lock(direct, database, "s"),
        pytest.raises(LockedError, match="'s' for more than"),
        study_lock(through, proxy.url, "s", 0.2),
    ):
        pass
    with study_lock(through, proxy.url, "s", 0.2):
        pass


def test_an_error_under_the_lock_is_its_own(proxy: Proxy) -> None:
    storage = open_storage(proxy.url)
    with pytest.raises(KeyError), study_lock(storage, proxy.url, "s"):
        storage.get_trial(99)
    with study_lock(storage, proxy.url, "s", 5):
        pass


def test_too_many_wait(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.stop()
    monkeypatch.setattr(server, "WAITING", 1)
    proxy.start()
    storage = open_storage(proxy.url)
    with (
        study_lock(storage, proxy.url, "s"),
        pytest.raises(grpc.RpcError) as caught,
        study_lock(open_storage(proxy.url), proxy.url, "other"),
    ):
        pass
    assert is_transient(caught.value)


HOLD = """
import sys, time
from autotune.storage.database import open_storage
from autotune.storage.lock import study_lock
from autotune.storage.patience import LockLostError
storage = open_storage(sys.argv[1])
try:
    with study_lock(storage, sys.argv[1], "s"):
        print("held", flush=True)
        sys.stdin.readline()
except LockLostError as error:
    print("lost", flush=True)
"""


@pytest.mark.slow
def test_a_holder_that_is_frozen_loses_the_lock(proxy: Proxy) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, proxy.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        with study_lock(open_storage(proxy.url), proxy.url, "s", 60):
            waited = time.monotonic() - start
            assert waited < 2 * (wire.PING_EVERY_S + wire.PING_PATIENCE_S) < GRACE_PERIOD_S
            holder.send_signal(signal.SIGCONT)
            answer, _ = holder.communicate("\n", timeout=30)
        assert answer == "lost\n"
    finally:
        holder.kill()
        holder.communicate()


# What goes away


def test_a_proxy_that_restarts_loses_no_report(proxy: Proxy) -> None:
    study = optuna.create_study(storage=open_storage(proxy.url))
    trial = study.ask()
    trial.report(0.1, 1)
    proxy.stop()
    threading.Timer(1.0, proxy.start).start()
    trial.report(0.2, 2)
    assert study.trials[0].intermediate_values == {1: 0.1, 2: 0.2}
    study.tell(trial, 0.2)
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_lock_goes_with_the_proxy(proxy: Proxy) -> None:
    storage = open_storage(proxy.url)
    with (
        pytest.raises(LockLostError, match="the lock of 's'"),
        study_lock(storage, proxy.url, "s"),
    ):
        proxy.stop()
        proxy.start()
        with study_lock(open_storage(proxy.url), proxy.url, "s", 5):
            pass


def test_nothing_is_repeated_under_a_lock(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 30.0)
    storage = open_storage(proxy.url)
    optuna.create_study(study_name="s", storage=storage)
    with pytest.raises(grpc.RpcError) as caught, study_lock(storage, proxy.url, "s"):
        proxy.stop()
        storage.get_study_id_from_name("s")
    assert is_transient(caught.value)
    proxy.start()


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with start_server() as found:
        yield found


def test_a_database_that_restarts_behind_it(own_server: Server) -> None:
    with Proxy(own_server.fresh_database()) as proxy:
        storage = open_storage(proxy.url)
        study = optuna.create_study(study_name="s", storage=storage)
        trial = study.ask()
        with (
            pytest.raises(LockLostError, match="went with its connection"),
            study_lock(storage, proxy.url, "s"),
        ):
            own_server.stop()
            own_server.start()
        own_server.stop()
        again = threading.Timer(1.0, own_server.start)
        again.start()
        trial.report(0.2, 1)
        again.join()
        # What is not repeated by itself is repeated with the whole that it belongs to.
        own_server.stop()
        with pytest.raises(grpc.RpcError) as caught:
            storage.create_new_trial(study._study_id)
        own_server.start()
        assert is_transient(caught.value)
        assert study.trials[0].intermediate_values == {1: 0.2}


# The verb


def test_the_verb(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "autotune.cli.main", "storage", "proxy", "--port", "0"]
    environment = {
        name: one for name, one in os.environ.items() if not name.startswith("AUTOTUNE")
    }
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**environment, "AUTOTUNE_STORAGE": f"sqlite:///{tmp_path}/study.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert running.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = running.stdout.readline()
            assert line, said
            said += line
        file = tmp_path / "storage/proxy/password"
        password = file.read_text().strip()
        assert file.stat().st_mode & 0o777 == 0o600
        assert password not in said
        export = re.search(r'AUTOTUNE_STORAGE="(.*)"', said)
        assert export is not None
        url = subprocess.run(
            ["sh", "-c", f'printf %s "{export[1]}"'], cwd=tmp_path, capture_output=True, text=True
        ).stdout
        assert password in url
        optuna.create_study(study_name="s", storage=open_storage(url))
        cmdline = Path(f"/proc/{running.pid}/cmdline")
        if cmdline.exists():
            assert password not in cmdline.read_text()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.communicate()
    assert optuna.get_all_study_names(open_storage(f"sqlite:///{tmp_path}/study.db")) == ["s"]
