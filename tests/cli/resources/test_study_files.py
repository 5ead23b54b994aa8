"""``ls``, ``cp`` and ``validate``: study files before they are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.config.loading import presets
from tests.support.commands.inside import call, contents

pytestmark = pytest.mark.usefixtures("closed_connections")


def test_ls_names_every_preset(tmp_path: Path) -> None:
    ended = call("ls", cwd=tmp_path, COLUMNS="300")
    assert (ended.code, ended.err) == (0, "")
    first, empty, *lines = ended.out.splitlines()
    assert first.startswith("no studies in sqlite:///storage/autotune.db") and not empty
    assert [line.split()[0] for line in lines] == ["preset", *presets()]
    assert "test_resnet.letters" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_cp_copies_to_a_file_or_into_a_folder(tmp_path: Path) -> None:
    ended = call("cp", "digits", "my.yaml", cwd=tmp_path)
    assert (ended.code, ended.out) == (0, "my.yaml: run it with: autotune run my.yaml\n")
    (tmp_path / "studies").mkdir()
    assert call("cp", "folder", "studies", cwd=tmp_path).code == 0
    for path, preset in (("my.yaml", "digits"), ("studies/folder.yaml", "folder")):
        assert (tmp_path / path).read_bytes() == presets()[preset].read_bytes()


@pytest.mark.parametrize("target", ["my.yaml", "."])
def test_cp_overwrites_nothing(target: str, tmp_path: Path) -> None:
    for name in ("my.yaml", "digits.yaml"):
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    ended = call("cp", "digits", target, cwd=tmp_path)
    assert ended.code == 2
    assert "exists and is not overwritten; name another one" in ended.err
    assert contents(tmp_path) == before


def test_a_copied_preset_is_valid_and_nothing_is_written(tmp_path: Path) -> None:
    call("cp", "digits", "my.yaml", cwd=tmp_path)
    before = contents(tmp_path)
    ended = call("validate", "my.yaml", "training.epochs=3", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    first, *rest = ended.out.splitlines()
    assert first == (
        "my.yaml is valid: study 'digits', 1,797 images of 10 classes, test_resnet.letters with 5 "
        "layers"
    )
    assert {
        "  searched  depth: 0 to 5",
        "  searched  head.dropout.1: 0.0 to 0.5 in steps of 0.1",
        "  searched  head.pool: keep, max, avgmax",
        "  searched  training.lr: 0.001 to 0.1, log",
        "  fixed     training.optimizer: adamw",
    } <= set(rest)
    seconds = [line for line in rest if line.startswith("  seconds   ")]
    assert len(seconds) == 2
    assert seconds[0].startswith("  seconds   a trial of 3 epochs takes about ")
    assert " s with 0 trainable layers, " in seconds[0] and "with 5 trainable layers" in seconds[0]
    assert contents(tmp_path) == before


@pytest.mark.parametrize("verb", ["validate", "run"])
def test_mistakes_of_all_kinds_are_told_at_once(verb: str, tmp_path: Path) -> None:
    wrong = (
        "search.trials=0",
        "colour=red",
        "no-override",
        "dataset=nowhere",
        "backbone=test_resnt",
        "storage=mysql://me:hunter2@host/db",
    )
    ended = call(verb, "digits", *wrong, cwd=tmp_path)
    assert (ended.code, ended.out) == (2, "")
    warning, title, *lines = ended.err.splitlines()
    assert warning.startswith("warning: every user of this machine can read a password")
    assert title == "error: command line: 6 mistakes"
    assert [line.split(":")[0].strip() for line in lines] == [
        "no-override",
        "search.trials",
        "colour",
        "storage",
        "dataset",
        "backbone",
    ]
    assert "hunter2" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_completed_tells_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("backbone: test_resnt\nsearch: {trials: 0}\n")
    ended = call("validate", "my.yaml", cwd=tmp_path)
    assert ended.err.splitlines()[0] == "error: my.yaml: 2 mistakes"
    assert "dataset: is required" in ended.err and "search.trials: must be" in ended.err
    path.write_text("backbone: [")
    ended = call("validate", "my.yaml", cwd=tmp_path)
    assert ended.err.startswith("error: my.yaml: 1 mistake\n  (file): is not valid YAML: ")
