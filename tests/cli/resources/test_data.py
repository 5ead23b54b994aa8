"""``autotune data`` and ``autotune weights``: from loopback, as a user without internet has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autotune.config.loading import load_study_file
from autotune.data.progress import READING
from autotune.study.setup.definition import define
from tests.support.commands.inside import call, contents
from tests.support.commands.runs import autotune
from tests.support.commands.serving import Publisher, running_publisher
from tests.support.data.archives import dogs_archives, sums_of
from tests.support.models.hub import running_hub

ROOT = Path(__file__).parents[3]
ARCHIVES = dogs_archives(breeds=4, train=6, test=2)
TINY = (
    *("backbone=test_resnet", "weights=none", "data.image_size=32", "training.epochs=1"),
    *("training.num_views=1", "search.trials=2", "search.sampler=random"),
    "space.trainable_layers=2",
)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with running_publisher() as running:
        running.files = {f"/dogs/{name}": content for name, content in ARCHIVES.items()}
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of data sets in which archives other than the published ones are expected."""
    folder = tmp_path / "data"
    (folder / "dogs").mkdir(parents=True)
    (folder / "dogs/SHA256SUMS").write_text(sums_of(ARCHIVES))
    return folder


def test_fetch_verify_and_path(publisher: Publisher, home: Path, tmp_path: Path) -> None:
    where = {"AUTOTUNE_DATA": str(home), "AUTOTUNE_MIRROR": publisher.url}
    assert call("data", "path", "dogs", cwd=tmp_path, **where).out == f"{home}/dogs\n"
    missing = call("data", "verify", "dogs", cwd=tmp_path, **where)
    assert missing.code == 2
    assert (
        "'dogs' is not downloaded yet; 'autotune data fetch dogs' downloads it (794 MB)"
        in missing.err
    )
    fetched = call("data", "fetch", "dogs", cwd=tmp_path, **where)
    assert (fetched.code, fetched.err) == (0, "")
    assert fetched.out.splitlines() == [
        "Stanford Dogs, http://vision.stanford.edu/aditya86/ImageNetDogs/; terms: images of "
        "ImageNet, whose terms hold: for non-commercial research and education",
        "fetching images.tar",
        "checking images.tar",
        "fetching lists.tar",
        "checking lists.tar",
        "unpacking images.tar",
        "unpacking lists.tar",
        f"dogs is downloaded: {home}/dogs/unpacked",
    ]
    again = call("data", "fetch", "dogs", cwd=tmp_path, **where)
    assert again.out == f"dogs is downloaded: {home}/dogs/unpacked\n"
    assert call("data", "verify", "dogs", cwd=tmp_path, **where).code == 0
    image = next((home / "dogs/unpacked").rglob("*.jpg"))
    image.write_bytes(b"x")
    damaged = call("data", "verify", "dogs", cwd=tmp_path, **where)
    assert damaged.code == 2
    assert f"{image} has changed" in damaged.err


def test_a_name_that_is_not_known(tmp_path: Path) -> None:
    ended = call("data", "fetch", "dgos", cwd=tmp_path)
    assert ended.code == 2
    assert "stl10, but got 'dgos'; did you mean 'dogs'?" in ended.err


def test_validate_fetches_nothing(publisher: Publisher, home: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    where = {"AUTOTUNE_DATA": str(home), "AUTOTUNE_MIRROR": publisher.url}
    ended = call("validate", "dogs", *TINY, cwd=tmp_path, **where)
    assert ended.code == 2
    assert "dataset: the dataset 'dogs' is not downloaded yet; 'autotune data fetch" in ended.err
    assert publisher.requests == []
    assert contents(tmp_path) == before


def test_run_looks_at_everything_else_before_it_fetches(
    publisher: Publisher, home: Path, tmp_path: Path
) -> None:
    where = {"AUTOTUNE_DATA": str(home), "AUTOTUNE_MIRROR": publisher.url}
    wrong = ("search.sampler=nowhere.py:Sampler", "space.trainable_layers=99")
    ended = call("run", "dogs", *TINY, *wrong, cwd=tmp_path, **where)
    assert ended.code == 2
    assert "space.trainable_layers" in ended.err and "dataset" not in ended.err
    assert publisher.requests == []


def test_a_definition_that_may_fetch(
    publisher: Publisher, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DATA", str(home))
    monkeypatch.setenv("AUTOTUNE_MIRROR", publisher.url)
    config = load_study_file("dogs", list(TINY))
    steps: list[str] = []
    definition = define(config, progress=lambda step, done, total: steps.append(step), fetch=True)
    assert (steps[0], steps[-1]) == ("fetching images.tar", READING)
    assert len(definition.dataset.source.samples) == 32
    assert define(config).dataset.fingerprint == definition.dataset.fingerprint


@pytest.mark.slow
def test_run_fetches(publisher: Publisher, home: Path, tmp_path: Path) -> None:
    publisher.failures["/dogs/images.tar"] = ["cut:20000"]
    where = {"AUTOTUNE_DATA": str(home), "AUTOTUNE_MIRROR": publisher.url}
    ended = call("run", "dogs", *TINY, "--workers", "1", cwd=tmp_path, **where)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert any(line.startswith("fetching images.tar") for line in lines)
    assert "unpacking images.tar" in ended.out
    assert any(line.startswith("trial 1: ") for line in lines)
    assert publisher.requests[:2] == ["/dogs/images.tar", "/dogs/images.tar bytes=20000-"]
    fitted = call("refit", "dogs", *TINY, cwd=tmp_path, **where)
    assert fitted.code == 0, fitted.err
    assert "On the 8 images of the test split, trained on 24 others" in fitted.out
    assert "Stanford Dogs is a part of ImageNet" not in fitted.out  # it had no weights


def test_a_mirror_that_is_no_address(tmp_path: Path, home: Path) -> None:
    where = {"AUTOTUNE_DATA": str(home), "AUTOTUNE_MIRROR": "ftp://x"}
    ended = call("data", "fetch", "dogs", cwd=tmp_path, **where)
    assert ended.code == 2
    assert "AUTOTUNE_MIRROR must be addresses that start with http" in ended.err


@pytest.mark.slow
def test_weights(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save

    name = "test_resnet.r160_in1k"
    content = save(timm.create_model("test_resnet").state_dict())
    with running_hub({f"timm/{name}/model.safetensors": content}) as hub:
        hidden = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), **hidden}
        fetched = autotune("weights", "fetch", name, cwd=tmp_path, **where)
        assert fetched.returncode == 0, fetched.stderr
        path = Path(fetched.stdout.removeprefix(f"{name}: ").strip())
        assert path.read_bytes() == content
        assert tmp_path / "hub" in path.parents
        hub.requests.clear()
        names = (name, "test_resnet.letters", "test_vit.r160_in1k")
        again = autotune("weights", "fetch", *names, cwd=tmp_path, **where)
        assert not any(name in request for request in hub.requests)
    assert again.stdout.splitlines()[0] == fetched.stdout.strip()
    assert again.returncode == 2
    assert "'test_vit.r160_in1k' from the hub" in again.stderr


def test_weights_of_no_backbone(tmp_path: Path) -> None:
    unknown = call("weights", "fetch", "test_resnt", cwd=tmp_path)
    assert unknown.code == 2
    assert "did you mean 'test_resnet" in unknown.err
