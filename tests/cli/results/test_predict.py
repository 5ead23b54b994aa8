"""``autotune predict`` as a user meets it."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from autotune.config.loading import slug
from autotune.display.console import find_model
from autotune.results.model.model_folder import load_model
from autotune.study.setup.opening import open_existing
from autotune.study.state import attrs
from tests.support.commands.inside import call
from tests.support.cuda import TOO_OLD, list_gpus, refuse_gpus
from tests.support.data.images import photo
from tests.support.models.surgery import CLASSES, kept, saved
from tests.support.study.studies import make_study


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "made", kept("test_resnet"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a folder in it, an odd name, and two files that are no images."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(("b.png", "a.jpg", "inner/c d.png", 'inner/"e",\n.png')):
        photo(90, 70, number).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no image either")
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder(model: Path, photos: Path, tmp_path: Path) -> None:
    ended = call(
        *("predict", str(model), "photos", "-o", "out.csv", "--batch-size", "2"), cwd=tmp_path
    )
    assert (ended.code, ended.out) == (0, "")
    assert "2 of 6 images cannot be read:\n" in ended.err
    assert (
        "  'photos/broken.jpg': not an image but a text file that begins with 'no image'\n"
        in ended.err
    )
    assert "  'photos/empty.png': the file is empty\n" in ended.err
    assert ended.err.endswith(
        "1 file is passed over: texts and tables 1 (.txt)\n4 images: out.csv\n"
    )
    found = rows((tmp_path / "out.csv").read_text("utf-8"))
    names = ["a.jpg", "b.png", 'inner/"e",\n.png', "inner/c d.png"]
    shown = [name.replace("\n", "\\n") for name in names]  # one line for each image
    assert [row["path"] for row in found] == [f"photos/{name}" for name in shown]
    expected = load_model(model).predict([photos / name for name in names])
    assert [row["class"] for row in found] == [CLASSES[i] for i in expected.argmax(dim=1)]
    for row, most in zip(found, expected.max(dim=1).values, strict=True):
        assert float(row["probability"]) == pytest.approx(float(most), abs=2e-6)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out.csv", "photos"]


def test_heat_maps(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of equal names are kept apart, and no name leaves the folder."""
    (photos / "inner/a.jpg").write_bytes((photos / "a.jpg").read_bytes())
    monkeypatch.setattr("autotune.models.heat_maps.MIN_SIDE", 1)
    arguments = ("predict", str(model), "photos", "-o", "out.csv", "--heatmaps", "maps")
    ended = call(*arguments, cwd=tmp_path)
    assert ended.code == 0 and "5 heat maps: maps\n" in ended.err
    classes = [slug(row["class"]) for row in rows((tmp_path / "out.csv").read_text("utf-8"))]
    stems = ["1-a", "2-b", "3-e", "4-a", "5-c-d"]
    expected = [f"{stem}-{name}.jpg" for stem, name in zip(stems, classes, strict=True)]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == sorted(expected)
    with Image.open(tmp_path / "maps" / expected[0]) as drawn:
        assert drawn.width == 2 * drawn.height
    monkeypatch.setattr("autotune.models.heat_maps.MIN_SIDE", 99)
    ended = call(*arguments, cwd=tmp_path)
    assert ended.code == 0
    assert "5 images without a heat map: its last map of features is " in ended.err
    monkeypatch.setattr("autotune.results.model.image_heat_maps.can_draw", lambda: False)
    ended = call(*arguments, cwd=tmp_path)
    assert ended.code == 2 and "pip install 'autotune[heatmaps]'" in ended.err


def test_a_gpu_that_cannot_be_used_is_no_cpu(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    list_gpus(monkeypatch, "GPU-8932f937")
    refuse_gpus(monkeypatch, RuntimeError(TOO_OLD))
    ended = call("predict", str(model), "photos", "-o", "out.csv", cwd=tmp_path)
    assert ended.code == 2
    assert "error: the GPU of this machine cannot be used: The NVIDIA driver" in ended.err
    assert not (tmp_path / "out.csv").exists()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert call("predict", str(model), "photos", "-o", "out.csv", cwd=tmp_path).code == 0


def test_printed_with_all_classes(model: Path, photos: Path, tmp_path: Path) -> None:
    ended = call(
        *("predict", str(model), "photos/a.jpg", "photos/a.jpg", "photos/notes.txt"),
        *("photos/b.png", "--top", "9", "--all"),
        cwd=tmp_path,
    )
    assert ended.code == 0
    assert "'photos/notes.txt': not an image but a text file that begins" in ended.err
    found = rows(ended.out)
    assert [row["path"] for row in found] == ["photos/a.jpg", "photos/b.png"]
    shares = ["probability", "probability_2", "probability_3"]
    for row in found:
        assert {row["class"], row["class_2"], row["class_3"]} == set(CLASSES)
        values = [float(row[name]) for name in shares]
        assert values == sorted(values, reverse=True)
        assert values == sorted((float(row[f"p_{name}"]) for name in CLASSES), reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)


def test_names_that_are_no_utf8(model: Path, photos: Path, tmp_path: Path) -> None:
    os.rename(photos / "a.jpg", os.fsencode(photos) + b"/a\xff.jpg")
    (photos / "broken.jpg").rename(photos / "b\x1b[2J.jpg")
    ended = call("predict", str(model), "photos", "-o", "out.csv", cwd=tmp_path)
    assert ended.code == 0
    found = rows((tmp_path / "out.csv").read_text("utf-8"))
    assert found[0]["path"] == r"photos/a\xff.jpg"
    assert "\x1b" not in ended.err and r"b\x1b[2J.jpg" in ended.err


def test_nothing_can_be_read(model: Path, photos: Path, tmp_path: Path) -> None:
    ended = call(
        *("predict", str(model), "photos/broken.jpg", "photos/empty.png", "-o", "out.csv"),
        cwd=tmp_path,
    )
    assert ended.code == 1
    assert "none of the images can be read:\n  'photos/broken.jpg': not an image" in ended.err
    assert [one.name for one in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("none.jpg", "photos", "b.png"), "there is no 'none.jpg' and 1 more; a path is relative"),
        (("photos/nothing",), "no file in 'photos/nothing' has the name of one"),
        (("photos", "-o", "photos"), "photos must be a file to write, but it is a folder"),
        (("photos", "-o", "no/out.csv"), "must exist and be writable, to write no/out.csv"),
        (("photos", "--top", "0"), "Invalid value for '--top'"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], said: str, model: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "nothing").mkdir()
    ended = call("predict", str(model), *arguments, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert [one.name for one in tmp_path.iterdir()] == ["photos"]


# The model of a study


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three studies: two have been refitted, of which one has other files."""
    folder = tmp_path_factory.mktemp("refitted")
    (folder / "storage").mkdir()
    url = f"sqlite:///{folder}/storage/autotune.db"
    for name in ("digits", "digits-tpe", "new"):
        study = make_study(name, trials=2, storage=url)
        files = "elsewhere" if name == "digits-tpe" else "storage/autotune.files"
        study.set_user_attr(attrs.FILES, str(folder / files))
        if name != "new":
            saved(open_existing(name, url).files.model(name), kept("test_resnet"))
    return folder


def found(refitted: Path, model: str, *overrides: str, **options: str | None) -> str:
    given = {"name": None, "storage": None, **options}
    path = find_model(model, overrides, **given)
    return str(path.resolve().relative_to(refitted))


@pytest.mark.parametrize(
    ("arguments", "options", "folder"),
    [
        (("digits",), {}, "storage/autotune.files/models/digits"),
        (("digits", "search.sampler=tpe"), {}, "elsewhere/models/digits-tpe"),
        (("digits-tpe",), {}, "elsewhere/models/digits-tpe"),
        (("digits",), {"name": "digits-tpe"}, "elsewhere/models/digits-tpe"),
        (
            ("folder", "dataset=my photos"),
            {"name": "digits"},
            "storage/autotune.files/models/digits",
        ),
        (("elsewhere/models/digits-tpe",), {}, "elsewhere/models/digits-tpe"),
    ],
)
def test_a_study_names_its_model(
    arguments: tuple[str, ...],
    options: dict[str, str],
    folder: str,
    refitted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(refitted)
    (refitted / "digits").mkdir(exist_ok=True)  # images of that name are no model
    assert found(refitted, *arguments, **options) == folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("new",), "the study 'new' has no model in "),
        (("digits", "--set", "backbone=resnet18"), "has no study 'digits-resnet18'"),
        (("folder", "--set", "dataset=photos"), "has no study 'photos'"),
        (
            ("nothing",),
            "'nothing' must be the folder of a model, or a study, but there is no such",
        ),
        (("./nothing",), "nothing must be the folder of a model, but there is none"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "export"])
def test_another_model_is_never_taken(
    verb: str, arguments: tuple[str, ...], message: str, refitted: Path, tmp_path: Path
) -> None:
    photo(90, 70).save(tmp_path / "a.png")
    model, *others = arguments
    images = [str(tmp_path / "a.png")] if verb == "predict" else ["--format", "torch-export"]
    ended = call(verb, model, *images, *others, cwd=refitted)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize("name", ["record.json", "model.safetensors", "MODEL_CARD.md"])
def test_a_file_of_a_model_names_its_folder(name: str, tmp_path: Path) -> None:
    for file in ("record.json", name):
        (tmp_path / "my model").mkdir(exist_ok=True)
        (tmp_path / "my model" / file).write_text("{}")
    photo(90, 70).save(tmp_path / "a.png")
    ended = call("predict", f"my model/{name}", str(tmp_path / "a.png"), cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert "but it is a file of one: give 'my model'" in ended.err
