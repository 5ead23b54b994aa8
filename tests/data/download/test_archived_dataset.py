from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.data.download.archived_dataset import ArchivedDataset
from autotune.data.download.http import RetryPolicy, download_archive
from autotune.data.download.paths import DatasetPaths, data_folder
from autotune.data.download.spec import ArchiveSpec, archive_urls
from autotune.data.progress import no_progress
from autotune.data.sources.stanford_dogs import read_dogs
from autotune.errors import DatasetError, DiskFullError, InsufficientSpaceError, UserError
from tests.support.archives import dogs_archives, sums_of, tar_bytes
from tests.support.publisher import Publisher, running_publisher

FORK = multiprocessing.get_context("fork")
HASTY = RetryPolicy(tries=2, pause_s=0.01, timeout_s=0.5)
CONTENT = os.urandom(1_000_000)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with running_publisher() as running:
        yield running


@pytest.fixture
def mirror() -> Iterator[Publisher]:
    with running_publisher() as running:
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("AUTOTUNE_MIRROR", raising=False)
    return tmp_path / "data"


@pytest.fixture
def place(home: Path) -> DatasetPaths:
    (home / "set").mkdir(parents=True)
    return DatasetPaths(home / "set")


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    home.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(home)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    yield home
    subprocess.run(["umount", str(home)], check=True)


def archive(
    content: bytes = CONTENT, *urls: str, known: bool = True, file: str = "a.tar"
) -> ArchiveSpec:
    digest = hashlib.sha256(content).hexdigest() if known else None
    return ArchiveSpec(file, urls, digest, len(content) if known else None, "images")


class Told(list[str]):
    """Remembers the steps that it is told of, each once."""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if step not in self:
            self.append(step)


class TestTransfer:
    def test_a_file(self, publisher: Publisher, place: DatasetPaths) -> None:
        publisher.files["/a.tar"] = CONTENT
        seen: list[tuple[str, int, int | None]] = []
        one = archive(CONTENT, f"{publisher.url}/a.tar")
        download_archive(one, one.urls, place, lambda *step: seen.append(step), HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT
        assert ("fetching a.tar", len(CONTENT), len(CONTENT)) in seen
        assert seen[-1] == ("checking a.tar", len(CONTENT), len(CONTENT))
        assert os.listdir(place.root) == ["a.tar"]

    def test_a_transfer_that_is_cut_goes_on(
        self, publisher: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        publisher.failures["/a.tar"] = ["cut:300000", 503, "cut:200000"]
        one = archive(CONTENT, f"{publisher.url}/a.tar")
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT
        first, second, third, fourth = publisher.requests
        assert first == "/a.tar"
        assert second == third == "/a.tar bytes=300000-"
        assert fourth == "/a.tar bytes=500000-"
        assert publisher.conditions[1:] == [publisher.conditions[1]] * 3
        assert publisher.conditions[1] is not None

    def test_what_a_killed_process_has_got_is_kept(
        self, publisher: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        one = archive(CONTENT, f"{publisher.url}/a.tar")

        def die(step: str, done: int, total: int | None) -> None:
            if done > 400_000:
                os.kill(os.getpid(), signal.SIGKILL)

        process = FORK.Process(target=download_archive, args=(one, one.urls, place, die, HASTY))
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        kept = place.partial("a.tar").stat().st_size
        assert 0 < kept < len(CONTENT)
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert publisher.requests == ["/a.tar", f"/a.tar bytes={kept}-"]
        assert place.archive("a.tar").read_bytes() == CONTENT

    def test_another_mirror_goes_on_with_it(
        self, publisher: Publisher, mirror: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = mirror.files["/b.tar"] = CONTENT
        publisher.failures["/a.tar"] = ["cut:300000", 503, 503]
        one = archive(CONTENT, f"{publisher.url}/a.tar", f"{mirror.url}/b.tar")
        told = Told()
        download_archive(one, one.urls, place, told, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT
        assert mirror.requests == ["/b.tar bytes=300000-"]
        assert mirror.conditions == [None]
        host = publisher.url.removeprefix("http://")
        assert f"a.tar: {host}: HTTP 503 Service Unavailable" in told

    def test_a_file_without_checksum_is_not_put_together_of_two(
        self, publisher: Publisher, mirror: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        mirror.files["/a.tar"] = CONTENT[::-1]
        publisher.failures["/a.tar"] = ["cut:300000", 404]
        one = archive(CONTENT, f"{publisher.url}/a.tar", f"{mirror.url}/a.tar", known=False)
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert mirror.requests == ["/a.tar"]
        assert place.archive("a.tar").read_bytes() == CONTENT[::-1]

    def test_a_file_that_changes_meanwhile_is_begun_anew(
        self, publisher: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = b"old" * 300_000
        publisher.failures["/a.tar"] = ["cut:300000", 404]
        one = archive(CONTENT, f"{publisher.url}/a.tar", known=False)
        with pytest.raises(DatasetError):
            download_archive(one, one.urls, place, no_progress, HASTY)
        publisher.files["/a.tar"] = CONTENT
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT

    def test_a_server_that_knows_no_ranges(
        self, publisher: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        publisher.ranges = False
        publisher.failures["/a.tar"] = ["cut:300000"]
        one = archive(CONTENT, f"{publisher.url}/a.tar")
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT

    def test_404_then_the_mirror(
        self, publisher: Publisher, mirror: Publisher, place: DatasetPaths
    ) -> None:
        mirror.files["/a.tar"] = CONTENT
        one = archive(CONTENT, f"{publisher.url}/a.tar", f"{mirror.url}/a.tar")
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT
        assert publisher.requests == ["/a.tar"]

    def test_a_wrong_checksum_then_the_mirror(
        self, publisher: Publisher, mirror: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT[::-1]
        mirror.files["/a.tar"] = CONTENT
        one = archive(CONTENT, f"{publisher.url}/a.tar", f"{mirror.url}/a.tar")
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT
        assert mirror.requests == ["/a.tar"]

    def test_a_damaged_beginning_is_begun_anew(
        self, publisher: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        place.partial("a.tar").write_bytes(b"x" * 300_000)
        one = archive(CONTENT, f"{publisher.url}/a.tar")
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT
        assert publisher.requests == ["/a.tar bytes=300000-", "/a.tar"]

    @pytest.mark.parametrize("known", [True, False])
    def test_all_of_it_had_come_already(
        self, known: bool, publisher: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = CONTENT
        one = archive(CONTENT, f"{publisher.url}/a.tar", known=known)
        place.partial("a.tar").write_bytes(CONTENT)
        place.origin("a.tar").write_text(f'{{"url": "{one.urls[0]}", "validator": ""}}')
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == CONTENT
        assert publisher.requests == ([] if known else [f"/a.tar bytes={len(CONTENT)}-"])

    def test_nobody_has_it(
        self, publisher: Publisher, mirror: Publisher, place: DatasetPaths
    ) -> None:
        publisher.files["/a.tar"] = b"<html>moved</html>"
        with running_publisher() as gone:
            pass
        urls = [f"{one.url}/a.tar" for one in (publisher, mirror, gone)]
        one = archive(CONTENT, *urls)
        with pytest.raises(DatasetError) as refusal:
            download_archive(one, one.urls, place, no_progress, HASTY)
        said = str(refusal.value)
        assert "its file has 18 bytes and the published one 1000000" in said
        assert "HTTP 404 Not Found" in said
        assert gone.url.removeprefix("http://") in said
        assert f"get {urls[0]} by hand and put it into {place.root}" in said
        assert "\n" not in said
        assert os.listdir(place.root) == []

    def test_a_server_that_says_nothing(self, publisher: Publisher, place: DatasetPaths) -> None:
        publisher.files["/a.tar"] = CONTENT
        publisher.failures["/a.tar"] = ["hang", "hang"]
        one = archive(CONTENT, f"{publisher.url}/a.tar")
        with pytest.raises(DatasetError, match="it does not answer in time"):
            download_archive(one, one.urls, place, no_progress, HASTY)

    def test_a_disk_that_is_too_small(self, publisher: Publisher, small_disk: Path) -> None:
        content = CONTENT * 2
        publisher.files["/a.tar"] = content
        place = DatasetPaths(small_disk / "set")
        place.root.mkdir()
        one = archive(content, f"{publisher.url}/a.tar")
        with pytest.raises(
            InsufficientSpaceError, match=r"needs 2\.0 MB more.*with AUTOTUNE_DATA"
        ):
            download_archive(one, one.urls, place, no_progress, HASTY)

    def test_a_disk_that_fills_up_meanwhile(self, publisher: Publisher, small_disk: Path) -> None:
        content = CONTENT[:900_000]
        publisher.files["/a.tar"] = content
        place = DatasetPaths(small_disk / "set")
        place.root.mkdir()
        one = archive(content, f"{publisher.url}/a.tar")
        other = small_disk / "other"

        def fill(step: str, done: int, total: int | None) -> None:
            if not other.exists():
                other.write_bytes(b"x" * 400_000)

        with pytest.raises(OSError, match="No space left"):
            download_archive(one, one.urls, place, fill, HASTY)
        other.unlink()
        download_archive(one, one.urls, place, no_progress, HASTY)
        assert place.archive("a.tar").read_bytes() == content
        assert publisher.requests[1].startswith("/a.tar bytes=")


def dogs(
    archives: dict[str, bytes], *urls: str, images: int = 15, classes: int = 3
) -> ArchivedDataset:
    """Small Stanford Dogs: published, with their own checksums."""
    published = tuple(
        ArchiveSpec(
            name,
            tuple(f"{url}/{name}" for url in urls),
            hashlib.sha256(content).hexdigest(),
            len(content),
            name.removesuffix(".tar"),
        )
        for name, content in archives.items()
    )
    return ArchivedDataset(
        *("dogs", "Stanford Dogs", "http://127.0.0.1/", "for tests", published),
        images=images,
        classes=classes,
        read=read_dogs,
        retry=HASTY,
    )


@pytest.fixture(scope="module")
def small_dogs() -> dict[str, bytes]:
    return dogs_archives()


def serve(publisher: Publisher, archives: dict[str, bytes]) -> None:
    publisher.files.update({f"/{name}": content for name, content in archives.items()})


def listing(root: Path) -> list[str]:
    return sorted(one.name for one in root.iterdir() if not one.name.startswith(".lock"))


class TestFetched:
    def test_from_nothing_to_images(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        serve(publisher, small_dogs)
        kept = dogs(small_dogs, publisher.url)
        assert not kept.is_downloaded
        told = Told()
        kept.fetch(told)
        assert kept.is_downloaded
        assert told[:2] == ["fetching images.tar", "checking images.tar"]
        assert "unpacking images.tar" in told
        source = read_dogs(kept.folder())
        assert source.classes == ("Breed 001", "Breed 002", "Chihuahua")
        assert [sample.split for sample in source.samples].count("test") == 6
        assert source.samples[0].key == "n02085620-Chihuahua/n02085620_0.jpg"
        assert source.read(source.samples[0]).size == (24, 24)
        assert listing(home / "dogs") == ["images.tar", "lists.tar", "unpacked"]
        assert kept.verify() == []
        publisher.requests.clear()
        kept.fetch(no_progress)
        assert publisher.requests == []

    def test_archives_that_were_put_there_by_hand(
        self, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        (home / "dogs").mkdir(parents=True)
        for name, content in small_dogs.items():
            (home / "dogs" / name).write_bytes(content)
        kept = dogs(small_dogs)
        kept.fetch(no_progress)
        assert kept.is_downloaded

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (slice(5000), "has 5000 bytes, but the published file has"),
            (slice(None, None, -1), "is not the published file (SHA-256 "),
        ],
    )
    def test_a_damaged_one_that_was_put_there_by_hand_stays(
        self, damage: slice, said: str, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        (home / "dogs").mkdir(parents=True)
        for name, content in small_dogs.items():
            (home / "dogs" / name).write_bytes(content)
        (home / "dogs/images.tar").write_bytes(small_dogs["images.tar"][damage])
        kept = dogs(small_dogs, "http://127.0.0.1:9")
        with pytest.raises(DatasetError) as refusal:
            kept.fetch(no_progress)
        assert said in str(refusal.value)
        assert "get http://127.0.0.1:9/images.tar by hand" in str(refusal.value)
        assert listing(home / "dogs") == ["images.tar", "lists.tar"]
        assert any("images.tar" in line for line in kept.verify())

    def test_archives_that_differ_from_the_published_ones(
        self, small_dogs: dict[str, bytes], publisher: Publisher, home: Path
    ) -> None:
        other = dogs_archives(breeds=2)
        serve(publisher, other)
        kept = dogs(small_dogs, publisher.url)
        (home / "dogs").mkdir(parents=True)
        (home / "dogs/SHA256SUMS").write_text(sums_of(other))
        kept.fetch(no_progress)
        assert len(read_dogs(kept.folder()).classes) == 2
        (home / "dogs/SHA256SUMS").write_text("images.tar")
        with pytest.raises(DatasetError, match="line 1 is not"):
            kept.verify()
        (home / "dogs/SHA256SUMS").write_text(sums_of({"images.tar": b""}))
        with pytest.raises(DatasetError, match=r"has none for lists\.tar"):
            kept.verify()

    def test_something_is_missing_in_them(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        serve(publisher, small_dogs)
        with pytest.raises(
            DatasetError,
            match=r"has 20580 images of 120 classes, but the archives in .* have 15 of 3",
        ):
            dogs(small_dogs, publisher.url, images=20580, classes=120).fetch(no_progress)
        assert listing(home / "dogs") == ["images.tar", "lists.tar"]

    def test_a_list_that_is_none(self, publisher: Publisher, home: Path) -> None:
        archives = dogs_archives()
        archives["lists.tar"] = tar_bytes({"train_list.mat": b"no list", "test_list.mat": b""})
        serve(publisher, archives)
        with pytest.raises(DatasetError, match="must be a list of Stanford Dogs in MATLAB's"):
            dogs(archives, publisher.url).fetch(no_progress)
        assert listing(home / "dogs") == ["images.tar", "lists.tar"]

    @pytest.mark.parametrize("name", ["/etc/passwd", "../../escaped"])
    def test_a_malicious_archive_with_the_right_checksum(
        self, name: str, publisher: Publisher, home: Path
    ) -> None:
        archives = {**dogs_archives(), "images.tar": tar_bytes({name: b"x"})}
        serve(publisher, archives)
        with pytest.raises(DatasetError, match="would be written outside of the folder"):
            dogs(archives, publisher.url).fetch(no_progress)
        assert listing(home / "dogs") == ["images.tar", "lists.tar"]
        assert listing(home) == ["dogs"]

    def test_a_disk_that_is_full_while_it_is_unpacked(
        self, publisher: Publisher, small_disk: Path
    ) -> None:
        archives = dogs_archives(breeds=40, side=128)
        serve(publisher, archives)
        assert 500_000 < len(archives["images.tar"]) < 950_000
        kept = dogs(archives, publisher.url, images=200, classes=40)
        with pytest.raises(DiskFullError, match="left"):
            kept.fetch(no_progress)
        assert not kept.is_downloaded
        assert ".unpacked.part" not in os.listdir(small_disk / "dogs")

    def test_files_that_are_gone_or_changed(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        serve(publisher, small_dogs)
        kept = dogs(small_dogs, publisher.url)
        kept.fetch(no_progress)
        folder = home / "dogs/unpacked/images/Images/n02085620-Chihuahua"
        (folder / "n02085620_1.jpg").write_bytes(b"x")
        (folder / "n02085620_2.jpg").unlink()
        (folder / "new.jpg").touch()
        wrong = [line.partition("Chihuahua/")[2] for line in kept.verify()]
        assert wrong == [
            "n02085620_1.jpg has changed",
            "n02085620_2.jpg: No such file or directory",
            "new.jpg does not belong to it",
        ]
        with pytest.raises(DatasetError, match=r"1 file is missing in .*fetch dogs'"):
            kept.folder()

    def test_a_process_that_is_killed_while_it_unpacks(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        serve(publisher, small_dogs)
        kept = dogs(small_dogs, publisher.url)

        def die(step: str, done: int, total: int | None) -> None:
            if step == "unpacking lists.tar":
                os.kill(os.getpid(), signal.SIGKILL)

        process = FORK.Process(target=kept.fetch, args=(die,))
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        assert not kept.is_downloaded
        assert (home / "dogs/.unpacked.part").is_dir()
        publisher.requests.clear()
        kept.fetch(no_progress)
        assert kept.verify() == []
        assert publisher.requests == []
        assert listing(home / "dogs") == ["images.tar", "lists.tar", "unpacked"]

    def test_two_processes_at_once(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path, tmp_path: Path
    ) -> None:
        serve(publisher, small_dogs)
        publisher.gate.clear()
        kept = dogs(small_dogs, publisher.url)
        logs = [tmp_path / "log1", tmp_path / "log2"]

        def fetch(log: Path) -> None:
            told = Told()
            replace(kept, retry=RetryPolicy()).fetch(told)
            log.write_text("\n".join(told))

        both = [FORK.Process(target=fetch, args=(log,)) for log in logs]
        both[0].start()
        deadline = time.monotonic() + 20
        while not publisher.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        both[1].start()
        threading.Timer(0.7, publisher.gate.set).start()
        for one in both:
            one.join(30)
        assert [one.exitcode for one in both] == [0, 0]
        assert kept.verify() == []
        assert sorted(publisher.requests) == ["/images.tar", "/lists.tar"]
        assert logs[1].read_text() == "waiting for the process that fetches dogs"

    def test_a_folder_that_cannot_be_written(self, home: Path) -> None:
        home.write_text("a file")
        with pytest.raises(DatasetError, match=r"must be a folder that can be written .*AUTOTUNE"):
            dogs({}).fetch(no_progress)

    def test_a_folder_that_may_only_be_read_is_enough_once_it_is_there(
        self, publisher: Publisher, small_dogs: dict[str, bytes], home: Path
    ) -> None:
        serve(publisher, small_dogs)
        kept = dogs(small_dogs, publisher.url)
        kept.fetch(no_progress)
        (home / "dogs/.lock").unlink(missing_ok=True)
        before = sorted(home.rglob("*"))
        kept.fetch(no_progress)
        assert len(read_dogs(kept.folder()).samples) == 15
        assert sorted(home.rglob("*")) == before

    def test_nothing_is_here(self) -> None:
        kept = dogs(dogs_archives())
        with pytest.raises(DatasetError, match="'dogs' is not downloaded yet; 'autotune"):
            kept.verify()
        with pytest.raises(DatasetError, match="is not downloaded yet"):
            kept.folder()


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOTUNE_DATA", "~/sets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / "sets"
    monkeypatch.delenv("AUTOTUNE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    assert data_folder() == Path("/scratch/cache/autotune/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert data_folder() == tmp_path / ".cache/autotune/data"


def test_mirrors_of_one_s_own_are_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    one = archive(CONTENT, "https://publisher/a.tar")
    monkeypatch.setenv("AUTOTUNE_MIRROR", "http://here/data/ https://there")
    assert archive_urls("dogs", one) == (
        "http://here/data/dogs/a.tar",
        "https://there/dogs/a.tar",
        "https://publisher/a.tar",
    )
    monkeypatch.setenv("AUTOTUNE_MIRROR", "/mnt/data")
    with pytest.raises(UserError, match=r"must be addresses that start with http.* '/mnt/data'"):
        archive_urls("dogs", one)
