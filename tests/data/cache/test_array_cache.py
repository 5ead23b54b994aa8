from __future__ import annotations

import errno
import fcntl
import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.data.cache import array_cache as shelf_module
from autotune.data.cache import entry as entry_module
from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import RECORD, Entry, EntryWriter
from autotune.errors import CacheError, DiskFullError, UserError
from autotune.study.state.failures import FailureKind, classify

#: a real process, made quickly; the parent has the same modules
FORK = multiprocessing.get_context("fork")
SIZE = 4000


def numbers(value: int, size: int = SIZE) -> Callable[[EntryWriter], dict[str, Any]]:
    """Make an entry of one array of bytes."""

    def make(writer: EntryWriter) -> dict[str, Any]:
        writer.array("numbers", np.uint8, (size // 4,)).append(
            np.full((4, size // 4), value, np.uint8)
        )
        return {"value": value}

    return make


def never(writer: EntryWriter) -> dict[str, Any]:
    raise AssertionError("it is there")


def put(shelf: ArrayCache, key: str, value: int = 1, size: int = SIZE) -> Entry:
    return shelf.get_or_create(key, numbers(value, size), size)


def age(shelf: ArrayCache, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(shelf.folder / key / RECORD, (then, then))


def left(folder: Path) -> set[str]:
    """What lies in a folder besides locks."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.fixture
def shelf(tmp_path: Path) -> ArrayCache:
    return ArrayCache(tmp_path / "files" / "cache", 10**9)


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Start the machine anew, as far as entries can tell."""

    def start(name: str) -> None:
        monkeypatch.setattr(entry_module, "boot_id", lambda: name)

    yield start


def test_arrays_are_made_once_and_mapped(shelf: ArrayCache) -> None:
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (5, 2, 3), dtype=np.uint8)
    second = generator.random((5, 7)).astype(np.float16)

    def make(writer: EntryWriter) -> dict[str, Any]:
        one, other = writer.array("a", "u1", (2, 3)), writer.array("b", np.float16, (7,))
        for rows in (slice(0, 2), slice(2, 2), slice(2, 5)):
            one.append(first[rows])
            other.append(second[rows][:, ::-1])
        writer.array("none", "i8", ())
        return {"dtype": "bfloat16", "sizes": [1, 2]}

    for _ in range(2):
        entry = shelf.get_or_create("features/one", make, 1000)
        assert isinstance(entry.array("a"), np.memmap)
        assert np.array_equal(entry.array("a"), first)
        assert np.array_equal(entry.array("b"), second[:, ::-1])
        assert entry.array("none").shape == (0,)
        assert (entry.record["dtype"], entry.record["sizes"]) == ("bfloat16", [1, 2])
        assert list(entry.record["arrays"]) == ["a", "b", "none"]
        assert not entry.array("a").flags.writeable
        make = never
    with pytest.raises(KeyError):
        entry.array("c")
    assert left(shelf.folder / "features") == {"one"}


def test_an_entry_travels_by_its_path(shelf: ArrayCache) -> None:
    entry = put(shelf, "a", 7)
    data = pickle.dumps(entry)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert isinstance(copy.array("numbers"), np.memmap)
    assert copy.record == entry.record
    assert int(copy.array("numbers")[3, 5]) == 7


def test_what_is_known(shelf: ArrayCache) -> None:
    assert shelf.keys() == []
    for key in ("images", "features/b/2", "features/b/1", "features/a/1"):
        assert shelf.get(key) is None
        put(shelf, key)
    assert shelf.keys() == ["features/a/1", "features/b/1", "features/b/2", "images"]
    assert shelf.keys("features/b") == ["features/b/1", "features/b/2"]
    assert shelf.keys("nothing") == []
    found = shelf.get("images")
    assert found is not None
    assert found.folder == shelf.folder / "images"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b", ".room", "a.tmp-1"])
def test_keys_that_lead_elsewhere(shelf: ArrayCache, key: str) -> None:
    with pytest.raises(ValueError, match="a key is folder names"):
        shelf.get(key)


@pytest.mark.parametrize("name", ["", "..", "a/b", RECORD, "needed", "twice"])
def test_names_of_arrays_that_are_none(shelf: ArrayCache, name: str) -> None:
    def make(writer: EntryWriter) -> dict[str, Any]:
        writer.array("twice", "u1", ())
        writer.array(name, "u1", ())
        return {}

    with pytest.raises(ValueError, match="a file name of its own"):
        shelf.get_or_create("a", make, 0)
    assert not shelf.folder.parent.exists()


@pytest.mark.parametrize("rows", [np.zeros((2, 3), np.uint16), np.zeros((2, 4), np.uint8)])
def test_other_rows_than_announced_are_refused(shelf: ArrayCache, rows: np.ndarray) -> None:
    def make(writer: EntryWriter) -> dict[str, Any]:
        writer.array("a", "u1", (3,)).append(rows)
        return {}

    with pytest.raises(ValueError, match=r"rows must be uint8 of shape \(3,\), but got uint"):
        shelf.get_or_create("a", make, 0)


class TestDamage:
    @pytest.mark.parametrize("name", ["numbers", RECORD])
    @pytest.mark.parametrize("what", ["cut", "empty", "gone"])
    def test_it_is_made_again(
        self, shelf: ArrayCache, caplog: pytest.LogCaptureFixture, name: str, what: str
    ) -> None:
        path = put(shelf, "a", 3).folder / name
        if what == "gone":
            path.unlink()
        else:
            os.truncate(path, 0 if what == "empty" else path.stat().st_size - 7)
        assert shelf.get("a") is None
        assert caplog.text == ""
        assert int(put(shelf, "a", 4).array("numbers")[0, 0]) == 4
        (told,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert told.getMessage().startswith(f"the arrays in {shelf.folder}/a are damaged (")
        assert left(shelf.folder) == {"a"}

    @pytest.mark.parametrize(
        "record", ["[]", "{}", "null", '{"arrays": [1]}', '{"arrays": {"numbers": 3}}', "\xff"]
    )
    def test_records_of_another_shape(self, shelf: ArrayCache, record: str) -> None:
        path = put(shelf, "a").folder / RECORD
        path.write_text(record, encoding="latin-1")
        assert int(put(shelf, "a", 4).array("numbers")[0, 0]) == 4

    def test_a_content_that_changed_is_found_when_the_machine_was_started_anew(
        self, shelf: ArrayCache, boot: Callable[[str], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        boot("monday")
        path = put(shelf, "a", 3).folder / "numbers"
        boot("tuesday")
        assert shelf.get("a") is not None
        assert (path.parent / "checked-tuesday").exists()
        written = path.stat().st_mtime_ns
        with path.open("r+b") as stream:
            stream.seek(1000)
            stream.write(bytes(512))
        os.utime(path, ns=(written, written))  # as if the disk had done it
        assert shelf.get("a") is not None  # read once: it may be larger than the memory
        boot("wednesday")
        assert shelf.get("a") is None
        assert int(put(shelf, "a", 4).array("numbers")[1, 2]) == 4
        assert "numbers has not the checksum that record.json says" in caplog.text

    def test_too_many_open_files_are_no_damage(self, shelf: ArrayCache) -> None:
        put(shelf, "a")

        def work(result: Connection) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            with suppress(OSError):
                while True:
                    os.dup(0)
            try:
                shelf.get_or_create("a", never, SIZE)
            except OSError as error:
                result.send(error.errno)

        process, receiver = start(work)
        assert receiver.poll(20)
        assert receiver.recv() == errno.EMFILE
        process.join()
        assert shelf.get_or_create("a", never, SIZE)


class TestMakers:
    def test_of_three_one_makes_it_and_two_wait(
        self, shelf: ArrayCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = tmp_path / "made"

        def slowly(writer: EntryWriter) -> dict[str, Any]:
            with made.open("a") as stream:
                stream.write("x")
            time.sleep(0.5)
            return numbers(5)(writer)

        def work(result: Connection) -> None:
            entry = shelf.get_or_create("a", slowly, SIZE)
            result.send(entry.array("numbers").tobytes())

        started = [start(work) for _ in range(3)]
        results = {receiver.recv() for _, receiver in started if receiver.poll(30)}
        for process, _ in started:
            process.join()
        assert results == {bytes([5]) * SIZE}
        assert made.read_text() == "x"
        assert left(shelf.folder) == {"a"}

    def test_a_long_wait_is_told(
        self, shelf: ArrayCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(shelf_module, "WAIT_SHOWN_S", 0.1)

        def work(ready: Connection) -> None:
            def slowly(writer: EntryWriter) -> dict[str, Any]:
                ready.send("at it")
                time.sleep(0.5)
                return numbers(5)(writer)

            shelf.get_or_create("a", slowly, SIZE)

        process, receiver = start(work)
        assert receiver.poll(20)
        shelf.get_or_create("a", never, SIZE, "features")
        process.join()
        lock = shelf.folder / "a.lock"
        assert f"another process makes features; waiting for it ({lock})" in caplog.text
        assert len(caplog.records) == 1

    def test_a_killed_maker_leaves_nothing_that_counts(self, shelf: ArrayCache) -> None:
        process = start_hanging(shelf, "a")
        kill(process)
        process = start_hanging(shelf, "b/c")
        kill(process)
        (left_over,) = left(shelf.folder / "b")
        assert ".tmp-" in left_over
        assert shelf.keys() == []
        assert left(shelf.folder) == {"b"}  # a look at the shelf clears it
        assert left(shelf.folder / "b") == set()
        assert int(put(shelf, "a", 4).array("numbers")[0, 0]) == 4

    def test_what_is_being_made_counts_and_stays(self, shelf: ArrayCache) -> None:
        shelf = ArrayCache(shelf.folder, 3 * SIZE)
        process = start_hanging(shelf, "a", needed=2 * SIZE)
        with pytest.raises(DiskFullError):
            put(shelf, "b", size=2 * SIZE)
        assert put(shelf, "c", size=SIZE // 2)
        assert len(left(shelf.folder)) == 2
        kill(process)
        assert put(shelf, "b", size=2 * SIZE)
        assert left(shelf.folder) == {"b", "c"}

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no"), ValueError("no")])
    def test_a_failed_maker_leaves_no_trace(self, shelf: ArrayCache, error: BaseException) -> None:
        def fail(writer: EntryWriter) -> dict[str, Any]:
            numbers(1)(writer)
            raise error

        with pytest.raises(type(error)):
            shelf.get_or_create("features/a", fail, SIZE)
        assert not shelf.folder.parent.exists()

    def test_a_folder_that_cannot_be_made(self, shelf: ArrayCache) -> None:
        shelf.folder.parent.write_text("")
        with pytest.raises(UserError) as caught:
            shelf.get_or_create("a", never, SIZE, "features")
        assert str(caught.value) == (
            f"features are kept in a folder that can be written, but {shelf.folder}: Not a "
            "directory; name another one with 'files='"
        )


class TestRoom:
    def test_what_was_not_used_for_longest_goes_first(
        self, shelf: ArrayCache, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        shelf = ArrayCache(shelf.folder, 4 * SIZE)
        for number, key in enumerate("abc"):
            put(shelf, key)
            age(shelf, key, 100 - number)
        assert shelf.get("a") is not None  # marks it as used
        put(shelf, "d")
        assert shelf.keys() == ["a", "c", "d"]
        assert f"{shelf.folder}/b: dropped for want of room (0.0 MB)" in caplog.text
        shelf.make_room(2 * SIZE)
        assert shelf.keys() == ["d"]
        assert {path.name for path in shelf.folder.iterdir() if "b" in path.name} == set()

    def test_more_than_the_limit_drops_nothing(self, shelf: ArrayCache) -> None:
        put(shelf, "a")
        small = ArrayCache(shelf.folder, 2 * SIZE)
        with pytest.raises(DiskFullError) as caught:
            small.get_or_create("b", never, 3 * SIZE, "features")
        assert str(caught.value) == (
            f"features need 0.0 MB, but everything in {shelf.folder} may take 0.0 MB, of which "
            "0.0 MB are in use; raise cache.disk_gb, or move the files of the study with 'files='"
        )
        assert shelf.keys() == ["a"]

    def test_what_is_in_use_stays_even_if_its_user_has_only_a_part_of_it(
        self, shelf: ArrayCache
    ) -> None:
        shelf = ArrayCache(shelf.folder, 2 * SIZE + 1000)

        def work(ready: Connection) -> None:
            part = put(shelf, "a").array("numbers")[2:3]
            ready.send("mine")
            time.sleep(60)
            print(part)

        process, receiver = start(work)
        assert receiver.poll(20)
        age(shelf, "a", 100)
        put(shelf, "b")
        put(shelf, "c")
        assert shelf.keys() == ["a", "c"]
        with pytest.raises(DiskFullError):
            put(shelf, "d", size=2 * SIZE)
        assert shelf.keys() == ["a", "c"]
        kill(process)
        put(shelf, "d", size=2 * SIZE)
        assert shelf.keys() == ["d"]

    def test_this_process_uses_it_as_long_as_its_array_lives(self, shelf: ArrayCache) -> None:
        shelf = ArrayCache(shelf.folder, SIZE + 1000)
        part = put(shelf, "a").array("numbers")[1]
        with pytest.raises(DiskFullError):
            put(shelf, "b")
        del part
        assert put(shelf, "b")
        assert shelf.keys() == ["b"]

    def test_without_locks_of_files_nothing_is_dropped(
        self, shelf: ArrayCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shelf = ArrayCache(shelf.folder, SIZE + 1000)
        flock = fcntl.flock

        def refuse(file: Any, kind: int) -> None:
            if not isinstance(file, int):  # of entries; filelock has a way of its own
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            flock(file, kind)

        monkeypatch.setattr(fcntl, "flock", refuse)
        put(shelf, "a")
        with pytest.raises(DiskFullError):
            put(shelf, "b")
        assert shelf.keys() == ["a"]

    def test_half_of_the_disk_where_there_is_no_limit(
        self, shelf: ArrayCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shelf = ArrayCache(shelf.folder)
        put(shelf, "a")
        taken = sum(path.stat().st_size for path in (shelf.folder / "a").iterdir())
        usage = shutil.disk_usage(shelf.folder)._replace(free=10 * taken)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        shelf.make_room(4 * taken)
        assert shelf.keys() == ["a"]
        shelf.make_room(5 * taken)
        assert shelf.keys() == []
        with pytest.raises(DiskFullError, match=r"raise cache\.disk_gb"):
            shelf.make_room(6 * taken)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


class TestFullDisk:
    def test_it_is_told_before_anything_is_made(self, small_disk: Path) -> None:
        shelf = ArrayCache(small_disk / "cache", 10**9)
        put(shelf, "a", size=600_000)
        with pytest.raises(DiskFullError) as caught:
            shelf.get_or_create("b", never, 2_000_000, "features")
        assert str(caught.value).startswith(
            f"features need 2.0 MB, but the disk of {shelf.folder} has 0.4 MB free; free some "
        )
        assert shelf.keys() == ["a"]
        put(shelf, "c", size=600_000)
        assert shelf.keys() == ["c"]

    def test_one_that_fills_up_meanwhile(self, small_disk: Path) -> None:
        shelf = ArrayCache(small_disk / "cache", 10**9)
        put(shelf, "a", 3)
        with pytest.raises(DiskFullError, match=f"no space left on the disk of {shelf.folder}"):
            shelf.get_or_create("b", numbers(1, size=2_000_000), 1000)
        assert left(shelf.folder) == {"a"}
        assert int(shelf.get_or_create("a", never, SIZE).array("numbers")[0, 0]) == 3


def start(work: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=work, args=(sender,))
    process.start()
    return process, receiver


def start_hanging(shelf: ArrayCache, key: str, needed: int = SIZE) -> BaseProcess:
    """Start a process that has half of an entry, and gets no further."""

    def work(ready: Connection) -> None:
        def hang(writer: EntryWriter) -> dict[str, Any]:
            numbers(1)(writer)
            writer.finish()
            ready.send("at it")
            time.sleep(60)
            return {}

        shelf.get_or_create(key, hang, needed)

    process, receiver = start(work)
    assert receiver.poll(20)
    return process


def kill(process: BaseProcess) -> None:
    process.kill()  # of one that has ended by itself, nothing
    process.join()


def test_the_record_is_readable(shelf: ArrayCache) -> None:
    record = json.loads((put(shelf, "a").folder / RECORD).read_text())
    assert record["value"] == 1
    assert record["arrays"]["numbers"] == {
        "dtype": "|u1",
        "shape": [4, 1000],
        "crc32": zlib.crc32(bytes([1]) * SIZE),
    }


@pytest.mark.slow
def test_many_processes_that_are_killed_at_random(shelf: ArrayCache, tmp_path: Path) -> None:
    """Whoever opens an entry sees what it should hold, or is told that there is no room."""
    keys, size = 8, 1 << 20
    shelf = ArrayCache(shelf.folder, int(3.5 * size))
    until = time.monotonic() + 15

    def work(index: int) -> None:
        draws = np.random.default_rng([index, time.time_ns()])
        held: list[Entry] = []
        while time.monotonic() < until:
            key = int(draws.integers(keys))
            try:
                entry = shelf.get_or_create(f"some/{key}", numbers(key, size), size)
            except DiskFullError:
                held.clear()
                continue
            array = entry.array("numbers")
            assert int(array.min()) == int(array.max()) == key == entry.record["value"]
            held = [*held, entry][-int(draws.integers(1, 3)) :]
        (tmp_path / f"{index}.done").touch()

    processes = {}
    draws = np.random.default_rng(0)
    for index in range(60):
        processes[index] = FORK.Process(target=work, args=(index,))
        processes[index].start()
        time.sleep(0.2)
        if index >= 3:
            victim = int(draws.choice(list(processes)))
            kill(processes.pop(victim))
    for process in processes.values():
        process.join(60)
        assert process.exitcode == 0
    shelf.make_room(size)
    assert set(shelf.keys()) <= {f"some/{key}" for key in range(keys)}
    assert not [path for path in shelf.folder.rglob("*") if ".tmp-" in path.name]
    for key in range(keys):
        assert int(put(shelf, f"some/{key}", key, size).array("numbers")[3, 5]) == key
    taken = sum(path.stat().st_size for path in shelf.folder.rglob("*") if path.is_file())
    assert taken <= shelf.limit_bytes


# What somebody removes or changes while it is used


@pytest.mark.parametrize("part", ["record", "array", "entry", "lock", "all"])
def test_what_was_removed_is_made_again(shelf: ArrayCache, part: str) -> None:
    entry = put(shelf, "features/a", 3)
    mapped = entry.array("numbers")
    home = entry.folder
    {
        "record": lambda: (home / RECORD).unlink(),
        "array": lambda: (home / "numbers").unlink(),
        "entry": lambda: shutil.rmtree(home),
        "lock": lambda: home.with_name("a.lock").unlink(),
        "all": lambda: shutil.rmtree(shelf.folder),
    }[part]()
    assert int(mapped[0, 0]) == 3  # who uses it goes on
    assert int(put(shelf, "features/a", 3).array("numbers")[0, 0]) == 3


REPLACED: dict[str, Callable[[Path], object]] = {
    "an entry by a file": lambda home: (shutil.rmtree(home), home.write_bytes(b"")),
    "an entry by a dangling link": lambda home: (shutil.rmtree(home), home.symlink_to("nowhere")),
    "an entry by a link to itself": lambda home: (shutil.rmtree(home), home.symlink_to(home.name)),
    "an entry by a link to a file": lambda home: (
        shutil.rmtree(home),
        home.with_name("b").write_bytes(b""),
        home.symlink_to("b"),
    ),
    "a record by a folder": lambda home: ((home / RECORD).unlink(), (home / RECORD).mkdir()),
    "a record by nothing": lambda home: (home / RECORD).write_bytes(b""),
    "an array by a folder": lambda home: (
        (home / "numbers").unlink(),
        (home / "numbers" / "a").mkdir(parents=True),
    ),
    "an array by a link to itself": lambda home: (
        (home / "numbers").unlink(),
        (home / "numbers").symlink_to("numbers"),
    ),
    "a lock by a folder": lambda home: (
        shutil.rmtree(home),
        home.with_name("a.lock").unlink(),
        (home.with_name("a.lock") / "b").mkdir(parents=True),
    ),
}


@pytest.mark.parametrize("what", REPLACED)
def test_what_was_replaced_is_made_again(shelf: ArrayCache, what: str) -> None:
    entry = put(shelf, "features/a", 3)
    REPLACED[what](entry.folder)
    for _ in range(2):
        assert int(put(shelf, "features/a", 3).array("numbers")[0, 0]) == 3
    assert not list(entry.folder.parent.glob("*.tmp-*"))


@pytest.mark.parametrize("part", ["all", "array", "folder", "lock"])
def test_what_is_removed_while_it_is_made_is_made_again(shelf: ArrayCache, part: str) -> None:
    removed = []

    def make(writer: EntryWriter) -> dict[str, Any]:
        made = numbers(7, SIZE)(writer)
        if not removed:
            (temporary,) = (shelf.folder / "features").glob("a.tmp-*")
            removed.append(temporary)
            if part == "array":
                (temporary / "numbers").unlink()
            elif part == "lock":  # and another process makes the same meanwhile
                (shelf.folder / "features" / "a.lock").unlink()
                put(ArrayCache(shelf.folder, shelf.limit_bytes), "features/a", 7)
            else:
                shutil.rmtree(shelf.folder if part == "all" else temporary)
        return made

    entry = shelf.get_or_create("features/a", make, SIZE)
    assert removed and int(entry.array("numbers")[0, 0]) == 7
    assert left(shelf.folder / "features") == {"a"}


def test_a_shelf_that_is_emptied_all_the_time_may_work_later(
    shelf: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "_PAUSES_S", (0.0, 0.0))

    def make(writer: EntryWriter) -> dict[str, Any]:
        made = numbers(7, SIZE)(writer)
        shutil.rmtree(shelf.folder)
        return made

    with pytest.raises(CacheError, match="removed again and again") as caught:
        shelf.get_or_create("a", make, SIZE)
    assert classify(caught.value, torch.device("cpu")) == FailureKind.TRANSIENT
    # What is missing elsewhere is no matter of the shelf.
    with pytest.raises(FileNotFoundError):
        shelf.get_or_create(
            "a", lambda writer: {"is": (shelf.folder.parent / "x").read_text()}, SIZE
        )


def test_an_entry_that_was_removed_before_another_process_opens_it(shelf: ArrayCache) -> None:
    entry = put(shelf, "a")
    sent = pickle.dumps(entry)
    shutil.rmtree(entry.folder)
    with pytest.raises(CacheError, match="was removed") as caught:
        pickle.loads(sent)
    assert classify(caught.value, torch.device("cpu")) == FailureKind.TRANSIENT


def test_a_flipped_bit_is_found(shelf: ArrayCache) -> None:
    """Whatever bit of whatever file of an entry somebody flips."""
    before = put(shelf, "a", 3)
    assert before.record["value"] == 3
    for name in (RECORD, "numbers"):
        path = before.folder / name
        whole = path.read_bytes()
        for bit in range(0, min(8 * len(whole), 900), 7):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            found = shelf.get("a")
            if found is not None:  # a flip that means nothing, such as in the name of the checksum
                assert name == RECORD
                assert {key: found.record[key] for key in before.record} == before.record
                assert np.array_equal(found.array("numbers"), before.array("numbers"))
            path.write_bytes(whole)
        assert shelf.get("a") is not None
