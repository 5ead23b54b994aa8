"""What autotune and other programs have written beside the images of a data set is no class."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.config.loading import load_study_file
from autotune.data.image_formats import describe_passed_over
from autotune.data.sources import outputs
from autotune.data.sources.folders import image_paths
from autotune.data.sources.registry import open_source
from autotune.errors import DatasetError
from autotune.storage.paths import StudyPaths
from tests.support.data.images import make_class_folders, make_split_folder, photo


def put(root: Path, *names: str) -> None:
    """Make files; those that end as images are images."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            photo(20, 16, seed=len(name)).save(path)
        else:
            path.write_bytes(b"x")


OUTPUTS = {
    "first steps": ("storage/autotune.files/cache/images-1.lock",),
    "a study": (
        *("storage/autotune.db", "storage/autotune.db.lock", "storage/autotune.files/cache/a/1"),
        "storage/autotune.files/models/p/record.json",
        "storage/autotune.files/models/p/model.safetensors",
        "storage/autotune.files/models/p/confusion_matrix.png",
    ),
    "files beside a database": ("mine.db", "mine.files/cache/1", "mine.files/logs/p/1.log"),
    "another database": ("db/mine.db", "db/mine.files/artifacts/1"),
    "files elsewhere": ("db/mine.db", "out/cache/1", "out/logs/p/1.log", "out/reports/p.html"),
    "files in the folder": ("cache/1", "artifacts/1", "logs/p/1.log", "checkpoints/p/0.pt"),
    "a refitted model": ("best/record.json", "best/model.safetensors", "best/reliability.png"),
    "unpacked archives": (f"unpacked/{'0' * 32}/ant/1.png", f"unpacked/{'f' * 32}/bee/1.png"),
    "downloads": ("downloads/dogs/unpacked/n1-Pug/1.jpg",),
    "Ultralytics": (
        "runs/detect/train/args.yaml", "runs/detect/train/weights/best.pt",
        "runs/detect/train/results.png", "runs/detect/predict/1.jpg",
    ),
    "YOLOv5": ("exp/opt.yaml", "exp/hyp.yaml", "exp/results.png"),
    "TensorBoard": ("board/Nov30_12-00-00_pc/events.out.tfevents.1",),
    "the cache of a hub": ("hf/hub/models--timm--resnet18/blobs/1",),
    "Weights & Biases": ("wandb/run-20241130_120000-a1/files/media/images/1.png",),
    "MLflow": ("mlruns/0/meta.yaml", "mlruns/0/a1/artifacts/1.png"),
    "Lightning": ("lightning_logs/version_0/hparams.yaml", "lightning_logs/version_0/1.png"),
    "Hydra": ("outputs/2024-11-30/12-00/.hydra/config.yaml", "outputs/2024-11-30/12-00/1.png"),
    "a Python environment": ("py/pyvenv.cfg", "py/lib/matplotlib/images/back.png"),
    "notebooks and git": (".ipynb_checkpoints/1-copy.png", ".git/a/1.png", "__pycache__/1.png"),
}  # fmt: skip


@pytest.mark.parametrize("writer", OUTPUTS)
@pytest.mark.parametrize("layout", ["classes", "splits", "link"])
def test_what_programs_have_written_is_no_class(
    writer: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    counts = {"ant": 3, "bee": 3}
    if layout == "splits":
        make_split_folder(root, {"train": counts, "test": counts})
    else:
        make_class_folders(root, counts)
    monkeypatch.setenv("AUTOTUNE_DATA", str(root / "downloads"))
    before = open_source(str(root))
    if layout == "link":
        put(tmp_path / "elsewhere", *OUTPUTS[writer])
        for path in (tmp_path / "elsewhere").iterdir():
            (root / path.name).symlink_to(path)
        monkeypatch.setenv("AUTOTUNE_DATA", str(tmp_path / "elsewhere/downloads"))
    else:
        put(root, *OUTPUTS[writer])
    after = open_source(str(root))
    assert (after.classes, after.samples) == (before.classes, before.samples)
    assert after.fingerprint == before.fingerprint
    if writer != "notebooks and git" and layout != "splits":
        assert "folders of " in describe_passed_over(after.passed_over)


CLASSES = {
    "names of outputs": {"storage": 3, "models": 3, "runs": 3, "cache": 3, "logs": 3},
    "names of other programs": {"wandb": 3, "mlruns": 3, "outputs": 3, "venv": 3, "weights": 3},
    "folders in classes": {"cars/models": 3, "runs/train": 3, "jumps/train": 3, "a/unpacked": 3},
    "names of parts": {"detect/exp": 3, "artifacts/logs": 3, "base/weights": 3},
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_class_may_have_any_name(case: str, tmp_path: Path) -> None:
    make_class_folders(tmp_path, CLASSES[case])
    put(tmp_path, f"{next(iter(CLASSES[case]))}/record.json", "ant/args.yaml", "ant/a/1.png")
    put(tmp_path, "ant/events.out.tfevents.1")
    source = open_source(str(tmp_path))
    classes = {"ant", *(name.partition("/")[0] for name in CLASSES[case])}
    assert source.classes == tuple(sorted(classes))
    assert len(source.samples) == 1 + sum(CLASSES[case].values())


def test_a_class_keeps_its_images_beside_output(tmp_path: Path) -> None:
    """A study with ``files: ant`` writes into a class."""
    make_class_folders(tmp_path, {"ant": 3, "bee": 3})
    put(tmp_path, "ant/cache/1", "ant/models/p/record.json", "ant/models/p/model.safetensors")
    put(tmp_path, "ant/models/p/confusion_matrix.png")
    source = open_source(str(tmp_path))
    assert (len(source.samples), source.passed_over["folders of autotune"]) == (6, {"p": 1})


def test_a_class_of_raw_photos_is_not_taken_for_output(tmp_path: Path) -> None:
    make_class_folders(tmp_path, {"ant": 3, "bee": 3})
    put(tmp_path, "models/1.cr2")
    with pytest.raises(DatasetError, match="has none in 'models'; fill or remove it"):
        open_source(str(tmp_path))


def test_output_alone_is_no_data_set(tmp_path: Path) -> None:
    put(tmp_path, "storage/autotune.db", "wandb/latest-run/1.png")
    with pytest.raises(DatasetError, match="has none with images; 2 folders and files are passed"):
        open_source(str(tmp_path))


def test_a_folder_that_is_named_is_read_whoever_has_written_it(tmp_path: Path) -> None:
    put(tmp_path, "train/args.yaml", "train/weights/1", "train/1.png")
    assert list(image_paths(str(tmp_path / "train"))) == [str(tmp_path / "train/1.png")]
    assert list(image_paths(str(tmp_path))) == []


@pytest.mark.parametrize(
    "options",
    [
        ("storage=sqlite:///db/a.db", "files=out"),
        ("storage=sqlite:///db/a.db", "files={root}/link/out/deep"),
        ("storage=sqlite:///{root}/link/db/a.db", "files=~/link/out"),
    ],
)
def test_empty_folders_into_which_a_study_will_write(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_class_folders(tmp_path / "photos", {"ant": 3, "bee": 3})
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(photos)
    monkeypatch.setattr(outputs, "_left_out", set())
    for name in ("db", "out"):
        (photos / name).mkdir()
    with pytest.raises(DatasetError, match="has none in 'db', 'out'; fill or remove them"):
        open_source(".")
    config = load_study_file("folder", [option.format(root=tmp_path) for option in options])
    files = StudyPaths.from_url(config.storage, config.files)
    outputs.leave_out(files.written_folders(config.storage))
    assert open_source(".").classes == ("ant", "bee")
    put(photos, "db/1.png")
    assert open_source(".").classes == ("ant", "bee", "db")
