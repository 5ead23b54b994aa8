"""A folder of images as people have them goes through the verbs with every file accounted for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.commands.inside import call
from tests.support.data.odd_images import KINDS, PASSED_OVER, READ, UNREADABLE, make_odd_images

STUDY = """
name: odd
dataset: photos
backbone: test_resnet.r160_in1k
weights: none
data: {max_unreadable_share: 0.5, image_size: 32}
space: {trainable_layers: 0}
search: {trials: 1, sampler: random}
training: {epochs: 1, num_views: 1}
"""
PASSED = (
    "8 files are passed over: drawings and layered images 2 (.psd, .svg), raw photos 2 (.cr2, "
    ".nef), videos 2 (.mov, .mp4), images without the ending of one 1, texts and tables 1 (.txt)"
)


@pytest.mark.slow
def test_every_file_is_accounted_for_by_every_verb(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    files = make_odd_images(tmp_path / "photos")
    assert len(KINDS) == 15 and [len(files[fate]) for fate in (READ, UNREADABLE)] == [16, 6]
    assert len(files[PASSED_OVER]) == 8
    (tmp_path / "odd.yaml").write_text(STUDY)

    facts = json.loads(call("data", "info", "photos", "--json", cwd=tmp_path).out)
    assert sorted(key for key, _ in facts["unreadable"]) == sorted(files[UNREADABLE])
    assert sum(sum(split.values()) for split in facts["classes"].values()) == 16 + 6
    assert sum(sum(endings.values()) for endings in facts["passed_over"].values()) == 8
    text = " ".join(call("data", "info", "photos", cwd=tmp_path).out.split())
    assert "images 22: " in text and "unreadable 6" in text and "passed over 8: draw" in text

    assert PASSED in call("validate", "odd.yaml", cwd=tmp_path).out
    ended = call("run", "odd.yaml", "--workers", "1", cwd=tmp_path)
    assert ended.code == 0
    assert "16 images are read (" in ended.out and "), 6 unreadable.\n" in ended.out
    assert ended.out.count(PASSED) == 1

    ended = call("refit", "odd.yaml", cwd=tmp_path)
    assert ended.code == 0
    assert "16 images are read (" in ended.out and "), 6 unreadable.\n" in ended.out
    assert ended.out.count(PASSED) == 1

    model = "storage/autotune.files/models/odd"
    ended = call("predict", model, "photos", "-o", "classes.csv", cwd=tmp_path)
    assert ended.code == 0
    with (tmp_path / "classes.csv").open() as stream:
        read = [row["path"].removeprefix("photos/") for row in csv.DictReader(stream)]
    assert sorted(read) == sorted(files[READ])
    assert "6 of 22 images cannot be read:\n" in ended.err
    assert all(f"'photos/{name}': " in ended.err for name in files[UNREADABLE])
    assert PASSED in ended.err
