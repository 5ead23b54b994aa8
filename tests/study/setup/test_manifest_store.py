"""A study has the images that it was made with, whatever comes to their folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autotune.config.schema import StudyConfig
from autotune.data.splits.manifest import Manifest
from autotune.errors import DatasetError, StudyError
from autotune.results.evaluation import refit as fit_module
from autotune.storage.admin.copy_study import copy_studies
from autotune.storage.paths import StudyPaths
from autotune.study.doctor.checks import check_study
from autotune.study.setup.definition import define
from autotune.study.setup.manifest_store import ExistingStudy, look_up_existing, read_manifest
from autotune.study.setup.opening import OpenStudy, check_existing, open_existing
from autotune.study.state import attrs
from autotune.study.state.budget import StopReason
from autotune.study.trial.context import build_context
from tests.support.data.images import make_class_folders
from tests.support.study.small import open_defined, small_config


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_class_folders(tmp_path / "photos", {"ant": 20, "bee": 20})


@pytest.fixture
def handle(photos: Path, tmp_path: Path) -> OpenStudy:
    return open_defined(define(config(photos, tmp_path)))


def config(photos: Path, folder: Path) -> StudyConfig:
    return small_config(folder, dataset=str(photos), space__trainable_layers=0, space__layers={})


def again(handle: OpenStudy) -> OpenStudy:
    return open_existing(handle.name, handle.url)


def test_the_split_is_an_artifact_of_the_study(handle: OpenStudy, photos: Path) -> None:
    name = handle.study.user_attrs[attrs.SPLIT]
    assert [path.name for path in handle.files.artifacts.iterdir()] == [name]
    manifest = read_manifest(handle.study, handle.files)
    assert manifest is not None
    parts = [line.split for line in manifest.rows]
    counts = {part: parts.count(part) for part in ("train", "validation", "test", "")}
    assert counts == {"train": 10, "validation": 4, "test": 20, "": 6}
    assert len(str(handle.study.user_attrs[attrs.SURVEY])) < 200
    # Continued, it stays the one that it is.
    folder = handle.files.root.parent
    assert look_up_existing(config(photos, folder)).manifest == manifest
    open_defined(define(config(photos, folder), manifest))
    assert again(handle).study.user_attrs[attrs.SPLIT] == name


def test_images_that_come_later_are_left_out(handle: OpenStudy, photos: Path) -> None:
    folder = handle.files.root.parent
    info = build_context(again(handle)).resources.get("test_resnet.letters").data.info
    shutil.copy(photos / "ant/000.png", photos / "ant/0.png")
    make_class_folders(photos / "more", {"x": 20})
    study_file = config(photos, folder)
    definition = define(study_file, look_up_existing(study_file).manifest)
    assert definition.dataset.num_added == 21
    assert check_existing(definition)
    open_defined(definition)
    task = build_context(again(handle)).resources.get("test_resnet.letters").data
    assert task.info == info
    # Without what was stored, as before: other images.
    shutil.rmtree(handle.files.artifacts)
    with pytest.raises(StudyError, match="dataset: "):
        check_existing(define(study_file, look_up_existing(study_file).manifest))
    with pytest.raises(StudyError, match="have changed since the study 'small' was made"):
        build_context(again(handle))


def test_a_missing_image_is_named(handle: OpenStudy, photos: Path) -> None:
    (photos / "bee" / "007.png").unlink()
    study_file = config(photos, handle.files.root.parent)
    with pytest.raises(StudyError) as caught:
        check_existing(define(study_file, look_up_existing(study_file).manifest))
    missing = (
        "  dataset: images of the study are missing, or in another class: 'bee/007.png'; bring"
    )
    assert missing in str(caught.value)


@pytest.mark.parametrize("how", ["older", "cut short", "damaged", "away"])
def test_without_it_a_study_goes_on_as_before(how: str, handle: OpenStudy, photos: Path) -> None:
    path = handle.files.artifacts / handle.study.user_attrs[attrs.SPLIT]
    if how == "older":
        attributes = handle.storage.get_study_user_attrs(handle.study._study_id)
        attributes[attrs.DATASET].pop("test_fingerprint")
        handle.study.set_user_attr(attrs.DATASET, attributes[attrs.DATASET])
        handle.study.set_user_attr(attrs.SPLIT, None)
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:50])
    elif how == "damaged":
        content = bytearray(path.read_bytes())
        content[20] ^= 0xFF  # gzip finds it before its checksum
        path.write_bytes(content)
    else:
        path.unlink()
    study_file = config(photos, handle.files.root.parent)
    assert (
        read_manifest(handle.study, again(handle).files)
        is look_up_existing(study_file).manifest
        is None
    )
    assert check_existing(define(study_file, None))
    assert (
        len(build_context(again(handle)).resources.get("test_resnet.letters").data.train_rows)
        == 10
    )


def test_a_study_that_has_ended_says_so(handle: OpenStudy, photos: Path, tmp_path: Path) -> None:
    study_file = config(photos, tmp_path)
    assert not look_up_existing(study_file).has_ended
    ended = StopReason("trials", "2 finished trials").to_json()
    handle.study.set_user_attr(attrs.ENDED, ended)
    assert look_up_existing(study_file) == ExistingStudy(
        look_up_existing(study_file).manifest, has_ended=True
    )


def test_there_is_none_before_there_is_a_study(photos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    assert look_up_existing(config(photos, tmp_path)).manifest is None
    away = config(photos, tmp_path).model_copy(
        update={"storage": "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1"}
    )
    assert look_up_existing(away).manifest is None
    assert sorted(tmp_path.iterdir()) == before


def test_it_goes_along_to_another_storage(handle: OpenStudy, tmp_path: Path) -> None:
    manifest = read_manifest(handle.study, handle.files)
    target = f"sqlite:///{tmp_path}/other/copy.db"
    (tmp_path / "other").mkdir()
    copy_studies(handle.url, target)
    copied = open_existing(handle.name, target)
    assert copied.files == StudyPaths.from_url(target) != handle.files
    shutil.rmtree(handle.files.artifacts)
    assert read_manifest(copied.study, copied.files) == manifest
    assert check_study(copied).findings == ()


def test_the_doctor_misses_it(handle: OpenStudy) -> None:
    assert check_study(handle).findings == ()
    (handle.files.artifacts / handle.study.user_attrs[attrs.SPLIT]).unlink()
    (found,) = check_study(again(handle)).findings
    assert found.message.startswith("the artifacts split.csv.gz of the study itself are not in ")


def test_fit_looks_at_the_test_part_s_fingerprint_before_it_reads(
    handle: OpenStudy, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(handle.study, handle.files)
    assert isinstance(manifest, Manifest)
    ctx = build_context(again(handle))
    ctx.resources.get("test_resnet.letters")  # opened before the image changes
    key = next(line.key for line in manifest.rows if line.split == "test")
    (photos / key).write_bytes(b"another")
    monkeypatch.setattr(fit_module, "build_context", lambda handle, **_: ctx)
    with pytest.raises(DatasetError) as caught:
        fit_module.refit_study(again(handle), trial=0)
    assert str(caught.value).startswith(
        f"the test images of {str(photos)!r} must be those with which the study was made"
    )
    assert attrs.TEST_READS not in again(handle).study.user_attrs
