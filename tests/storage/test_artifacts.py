"""References to artifacts, of all studies of a storage, and the files of a folder."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.trial import Trial

from autotune.storage.artifacts import ArtifactReference, add_artifact, list_files, read_references
from autotune.storage.rdb.connection import open_storage


def test_references_of_trials_and_studies(url: str, tmp_path: Path) -> None:
    storage = open_storage(url, create=True)
    store = FileSystemArtifactStore(tmp_path)
    source = tmp_path / "curve.png"
    source.write_text("x")
    expected = set()
    for name in ("one", "two"):
        study = optuna.create_study(study_name=name, storage=storage)
        storage.set_study_system_attr(study._study_id, "other:artifacts:x", "x")
        storage.create_new_trial(study._study_id)
        trial = Trial(study, storage.create_new_trial(study._study_id))
        for whose, number in ((study, None), (trial, 1)):
            artifact = upload_artifact(
                artifact_store=store, file_path=str(source), study_or_trial=whose, storage=storage
            )
            expected.add(ArtifactReference(study._study_id, number, artifact, "curve.png"))
        # As dashboards before Optuna's artifacts wrote them, and as they delete.
        old = {"artifact_id": f"old-{name}", "filename": "old.png"}
        storage.set_study_system_attr(
            study._study_id, f"dashboard:artifacts:7:old-{name}", json.dumps(old)
        )
        expected.add(ArtifactReference(study._study_id, None, f"old-{name}", "old.png"))
        storage.set_trial_system_attr(trial._trial_id, "artifacts:deleted", json.dumps(None))
        storage.set_study_system_attr(study._study_id, "artifacts:gone", json.dumps(None))
    assert set(read_references(storage)) == expected


def test_files_of_a_folder(tmp_path: Path) -> None:
    assert list_files(tmp_path / "none") == ()
    (tmp_path / "b").write_text("xyz")
    (tmp_path / "a").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b")
    first, second = list_files(tmp_path)
    assert (first.path.name, first.size_bytes) == ("a", 0)
    assert (second.path.name, second.size_bytes) == ("b", 3)
    assert 0 <= second.age_s < 60


def test_an_artifact_is_whole_before_anything_refers_to_it(url: str, tmp_path: Path) -> None:
    storage = open_storage(url, create=True)
    study = optuna.create_study(storage=storage)
    trial = Trial(study, storage.create_new_trial(study._study_id))
    folder = tmp_path / "artifacts"
    folder.mkdir()
    source = tmp_path / "curve.png"
    source.write_bytes(bytes(200_000))
    add_artifact(trial, source, folder)
    (meta,) = get_all_artifact_meta(trial, storage=storage)
    assert (meta.filename, meta.mimetype) == ("curve.png", "image/png")
    reader = FileSystemArtifactStore(folder).open_reader(meta.artifact_id)
    with reader:
        assert reader.read() == source.read_bytes()
    # A limit for the size of files, instead of a full disk: the copy ends in the middle.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            add_artifact(trial, source, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in folder.iterdir()] == [meta.artifact_id]
    assert get_all_artifact_meta(trial, storage=storage) == [meta]
