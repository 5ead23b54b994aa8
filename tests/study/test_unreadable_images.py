"""Images that cannot be read are found before anything trains, and what a message names helps."""

from __future__ import annotations

import csv
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.config.schema import DataConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.splits.dataset import Dataset
from autotune.data.views.study_data import check_test_images
from autotune.errors import AutotuneError, DatasetError, StudyError
from autotune.results.evaluation.refit import refit_study
from autotune.study.engine import training_worker
from autotune.study.setup.definition_changes import check_same
from autotune.study.setup.opening import OpenStudy, open_or_create
from autotune.study.state import attrs
from autotune.study.trial.context import build_context
from autotune.study.trial.trainings import checkpoint_for
from tests.support.commands.inline import run
from tests.support.commands.inside import call
from tests.support.data.images import make_split_folder
from tests.support.study.small import defined, open_small, small_config

SPEC = ImageSpec(8, 12, "bicubic", 0.6, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
COUNTS = {"cat": 4, "dog": 4}
#: A test image.
BAD = "test/cat/002.png"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def rename_text(path: Path) -> None:
    path.write_text("no image")


Damage = Callable[[Path], None]
DAMAGES = [truncate, empty, lose, rename_text]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_split_folder(tmp_path / "photos", dict.fromkeys(("train", "val", "test"), COUNTS))


def as_table(photos: Path) -> Path:
    """Write a table outside of the folder, whose rows of the test split lie elsewhere."""
    table = photos.parent / "tables/photos.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split"])
        for path in sorted(photos.rglob("*.png")):
            split, label, _ = path.relative_to(photos).parts
            writer.writerow([f"../photos/{path.relative_to(photos)}", label, split])
    return table


def checked(dataset: Path, limit: float = 0.01) -> dict[str, str]:
    data = DataConfig(max_unreadable_share=limit)
    return check_test_images(Dataset.open(str(dataset), data), data, [SPEC])


@pytest.mark.parametrize(
    ("damage", "layout"),
    [*((damage, "folder") for damage in DAMAGES), (truncate, "table"), (rename_text, "table")],
)
def test_before_a_study_is_made_every_named_cure_works(
    damage: Damage, layout: str, photos: Path
) -> None:
    dataset = photos if layout == "folder" else as_table(photos)
    bad = photos / BAD
    good = bad.read_bytes()
    assert checked(dataset) == {}
    damage(bad)
    with pytest.raises(DatasetError) as caught:
        checked(dataset)
    message = str(caught.value)
    assert "at most 0.01 of the test images may be unreadable" in message and BAD in message
    assert "repair or remove them, or raise the limit: data.max_unreadable_share=0.125" in message
    assert [key.removeprefix("../photos/") for key in checked(dataset, 0.125)] == [BAD]
    bad.unlink()
    if layout == "table":
        table = dataset.read_text()
        dataset.write_text("".join(row for row in table.splitlines(True) if BAD not in row))
    assert checked(dataset) == {}
    bad.write_bytes(good)
    assert checked(dataset) == {}


def test_a_class_without_any_is_refused_whatever_the_limit(photos: Path) -> None:
    for path in (photos / "test/cat").iterdir():
        truncate(path)
    with pytest.raises(DatasetError, match=r"none can of 'cat': .*; repair or replace them, or"):
        checked(photos, 0.9)


@pytest.mark.parametrize("damage", DAMAGES)
def test_data_info_counts_them(damage: Damage, photos: Path) -> None:
    damage(photos / BAD)
    shown = call("data", "info", str(photos), cwd=photos.parent)
    assert shown.code == 0, shown.err
    assert "1, 1 of them test images" in shown.out and f"unreadable: {BAD} (" in shown.out
    assert "16 images (train, validation)" in shown.out


# A study that exists


def opened(photos: Path, **more: Any) -> OpenStudy:
    values = {"dataset": str(photos), "data__train_per_class": None, "search__trials": 1, **more}
    return open_small(photos.parent, **values)


def test_a_refit_opens_the_test_split_before_it_trains(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a study of an earlier version, which did not check the test split."""
    truncate(photos / BAD)
    handle = opened(photos)
    run(handle)
    trained: list[object] = []
    real = training_worker.store_refit
    monkeypatch.setattr(
        training_worker, "store_refit", lambda *args, **kw: trained.append(0) or real(*args, **kw)
    )
    with pytest.raises(DatasetError, match="of the test images may be unreadable") as caught:
        refit_study(handle)
    assert trained == []
    (limit,) = re.findall(r"data\.max_unreadable_share=([\d.]+)", str(caught.value))
    assert refit_study(handle, max_unreadable_share=float(limit)).test_images == 7


def test_what_was_accepted_when_the_study_was_made_is_accepted(photos: Path) -> None:
    truncate(photos / BAD)
    handle = opened(photos)
    survey = {"unreadable_test": {"count": 1, "images": 8, "examples": [[BAD, "truncated"]]}}
    handle.study.set_user_attr(attrs.SURVEY, survey)
    run(handle)
    assert refit_study(handle).test_images == 7
    (line,) = attrs.image_warnings(handle.study.user_attrs)
    assert line.startswith("1 image of 8 in the test split cannot be read")


def test_the_limit_may_change_and_changes_nothing_else(photos: Path) -> None:
    values = {"dataset": str(photos), "data__train_per_class": None}
    handle = open_small(photos.parent, **values)
    (trial,) = handle.study.get_trials(deepcopy=False)
    before = checkpoint_for(handle, handle.config(), trial)
    config = small_config(photos.parent, **values, data__max_unreadable_share=0.3)
    definition = defined(config)
    check_same(handle.study, definition)
    again = open_or_create(definition, handle.study.user_attrs[attrs.DATASET])
    assert again.config().data.max_unreadable_share == 0.3  # workers read it
    assert checkpoint_for(again, again.config(), trial) == before
    other = small_config(photos.parent, **values, data__seed=5)
    with pytest.raises(StudyError, match=r"data\.seed: 0 in the study, 5 now"):
        check_same(handle.study, defined(other))


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (truncate, "val/dog/001.png"),
        (rename_text, BAD),
        (lose, "train/cat/000.png"),
        (Path.unlink, "val/cat/003.png"),
        (Path.unlink, BAD),
    ],
)
def test_an_image_that_changes_later_is_named_and_bringing_it_back_helps(
    damage: Damage, name: str, photos: Path
) -> None:
    handle = opened(photos)
    handle.study.tell(handle.study.ask(), 0.5)
    path, kept = photos / name, photos.parent / "kept.png"
    shutil.copy2(path, kept)
    damage(path)
    if path.exists():
        os.utime(path, (time.time() + 60,) * 2)
    with pytest.raises(AutotuneError) as caught:
        build_context(handle)
    assert "have changed since the study" in str(caught.value) and name in str(caught.value)
    path.unlink(missing_ok=True)
    shutil.copy2(kept, path)
    assert build_context(handle)
