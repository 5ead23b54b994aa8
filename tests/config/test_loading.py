from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.config.backbones import presets_folder
from autotune.config.loading import (
    apply_overrides,
    find_study_file,
    load_study_file,
    parse_overrides,
    presets,
    read_yaml,
    slug,
    study_name,
)
from autotune.config.schema import SearchConfig, StudyConfig
from autotune.config.validation import all_keys
from autotune.errors import ConfigError, StudyError
from tests.support.data.archives import zip_bytes

MINIMAL = "dataset: photos/ants\nbackbone: resnet18\n"
UNKNOWN = f"unknown key; search has {', '.join(SearchConfig.model_fields)}"
STUDIES = sorted(presets_folder().glob("*.y*ml"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


# Shipped files


def test_there_are_study_files() -> None:
    assert len(STUDIES) >= 2
    assert {"digits", "folder"} <= presets().keys()
    assert all(path.suffix == ".yaml" for path in STUDIES)
    assert all(path.is_file() for path in presets().values())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_file_loads_and_says_what_it_is(path: Path) -> None:
    config = load_study_file(str(path))
    assert isinstance(config, StudyConfig)
    assert config.description
    assert config.name


def test_the_commented_study_file_shows_every_key() -> None:
    text = presets()["folder"].read_text()
    shown = {key for key in all_keys() if f"{key.rsplit('.', 1)[-1]}:" in text}
    assert shown == set(all_keys())


# Finding and reading


def test_a_preset_comes_before_a_file_and_a_path_is_a_path(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.parent)
    (study.parent / "digits").mkdir()
    assert find_study_file("digits") == presets()["digits"]
    assert find_study_file("mine.yaml") == Path("mine.yaml")
    monkeypatch.setenv("HOME", str(study.parent))
    assert find_study_file("~/mine.yaml") == study


OTHER_FILES = {
    "photos.zip": (
        zip_bytes({"a/1.png": b"x"}),
        "is a zip archive; 'autotune run folder dataset=",
    ),
    "my table.csv": (b"path,label\n", "is a table; 'autotune run folder dataset='my table.csv''"),
    "1.jpg": (b"\xff\xd8\xff\xe0", "is a JPEG image; name the folder that has"),
    "model.yaml": (b"\x08\0\0\0\0\0\0\0{}      ", "is a safetensors file; a study uses weights"),
    "notes.txt": (b"search for it\n", "is a text file"),
    "page.yaml": (b"<!DOCTYPE html>", "is an HTML page; open it to see why it is there"),
    "autotune.db": (
        b"SQLite format 3\0",
        "is an SQLite database; --storage sqlite:///autotune.db",
    ),
    "noise": (bytes(range(255, 0, -1)), "is of an unknown format"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_is_no_study_file_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = OTHER_FILES[name]
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(StudyError) as refusal:
        find_study_file(name)
    assert f"{name!r} {message}" in str(refusal.value)


@pytest.mark.parametrize("name", ["my.study", "my.txt", "my.json", "my", "my.YAML", "my.yml"])
def test_a_study_file_of_any_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('{\n  "dataset": "digits"\n}' if name == "my.json" else "a: 1\ndataset: x\n")
    assert find_study_file(str(path)) == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", "no study file 'digts': the presets are .*; did you mean 'digits'"),
        ("mnie.yaml", "no study file 'mnie.yaml': there is no such file; .*'mine.yaml'"),
        ("mine", "did you mean 'mine.yaml'"),
        ("", "no study file ''"),
        ("x" * 5000, "no study file"),
        ("~nobody-here/x.yaml", "there is no such file"),
        ("a\0b", "no study file"),
        (".", "but '.' is a folder; 'autotune run folder dataset=.' makes a study of its"),
    ],
)
def test_a_missing_file_is_reported_with_the_nearest_name(
    name: str, message: str, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.parent)
    with pytest.raises(StudyError, match=message):
        load_study_file(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold keys such as 'dataset:' and 'backbone:'"),
        ("- a\n- b\n", "must hold keys such as"),
        ("just text", "must hold keys such as"),
        ("a: [1", "is not valid YAML: while parsing a flow sequence"),
        ("a: 1\na: 2\n", "the key 'a' is given twice in .*, line 2, column 1"),
        ("search: {seed: 1, seed: 1}\n", "the key 'seed' is given twice"),
        ("? [1, 2]\n: 3\n", "is not valid YAML: .*unhashable key"),
        ("dataset: 2024-99-99\n", "is not valid YAML: month must be in 1..12"),
        ("a: !!python/object:os.system x\n", "is not valid YAML: could not determine"),
        ("a: &x [*x]\nb: \x00", "is not valid YAML"),
    ],
)
def test_what_is_no_study_file(text: str, message: str, study: Path) -> None:
    study.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_study_file(str(study))
    assert str(caught.value).startswith(f"{study}: 1 mistake\n  (file): ")


def test_a_folder_is_no_study_file(study: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(study.parent)


def test_the_values_of_yaml(study: Path) -> None:
    study.write_text(
        MINIMAL + "search: {pruner: null, timeout: ~}\n"
        "training: {amp: off, clip_norm: null}\n"
        "space: {training: {lr: {low: 1e-4, high: 1e-1, log: true}}}\n"
    )
    config = load_study_file(str(study))
    assert config.search.pruner == "none"
    assert config.training.precision == "off"
    assert config.space.training.lr == {"low": 1e-4, "high": 0.1, "log": True}


# Overrides


def test_overrides_replace_values_sections_and_nothing_else(study: Path) -> None:
    study.write_text(MINIMAL + "search: {trials: 7, seed: 3}\nspace: {depth: 3}\n")
    config = load_study_file(
        str(study), ["search.trials=9", "space={head: {units: [1, 2]}}", "files=/x=y"]
    )
    assert (config.search.trials, config.search.seed) == (9, 3)
    assert config.space.trainable_layers == 0
    assert config.space.head.units == [1, 2]
    assert config.files == "/x=y"
    config = load_study_file(str(study), ["search={sampler: gp}", "search.seed=4"])
    assert (config.search.trials, config.search.seed, config.search.sampler) == (40, 4, "gp")


def test_overrides_leave_the_values_alone() -> None:
    values = {"a": {"b": 1}}
    assert apply_overrides(values, {"a.b": 2, "a.c.d": 3}) == {"a": {"b": 2, "c": {"d": 3}}}
    assert apply_overrides(values, {"a": None, "a.b": 2}) == {"a": {"b": 2}}
    assert values == {"a": {"b": 1}}


def test_overrides_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(
            ["search.trials", "=3", "a=[1", " b = {x: 1, x: 2}", "c=2024-99-99", "d=1"]
        )
    assert str(caught.value) == (
        "command line: 5 mistakes\n"
        "  search.trials: an override must read key=value\n"
        "  =3: an override must read key=value\n"
        "  a: must be a YAML value, but got '[1'\n"
        "  b: must be a YAML value, but got ' {x: 1, x: 2}'\n"
        "  c: must be a YAML value, but got '2024-99-99'"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "serach.trials=3",
            f"serach: unknown key; a study file has {', '.join(StudyConfig.model_fields)}; "
            "did you mean 'search'?",
        ),
        (
            "search.trails=3",
            f"search.trails: {UNKNOWN}; did you mean 'trials'?",
        ),
        (
            "search.sampler.name=3",
            "search.sampler: must be one of gp, tpe, random, or a plugin as my_file.py:name, "
            "but got {'name': 3}",
        ),
        ("search=", "search: must be a section with keys, but got null"),
        (
            "search..trials=3",
            f"search.: {UNKNOWN}",
        ),
    ],
)
def test_wrong_overrides(override: str, message: str, study: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study_file(str(study), [override])
    assert str(caught.value) == f"{study} with {override}: 1 mistake\n  {message}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["storage=postgresql://u:secret@h/db", "search.trials=0"],
        ["storage='postgresql://u:sec@ret@h/db'", "search.trials=0"],
        ["storage={a: 'postgresql://u:secret@h/db'}", "lr=3"],
        ["storage=postgresql://h/db?user=u&password=secret", "lr=3"],
    ],
)
def test_no_message_shows_a_password(overrides: list[str], study: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study_file(str(study), overrides)
    assert "ret" not in str(caught.value).replace("secret@", "LEAK")
    assert "LEAK" not in str(caught.value)
    assert "***" in str(caught.value)


# Names


@pytest.mark.parametrize(
    ("base", "overrides", "name"),
    [
        ({"name": "digits"}, {}, "digits"),
        ({"name": "digits"}, {"search.sampler": "tpe"}, "digits-tpe"),
        ({"name": "digits"}, {"search": {"sampler": "tpe"}}, "digits-tpe"),
        ({"name": "digits"}, {"search.sampler": "gp"}, "digits"),
        ({"name": "digits"}, {"search.trials": 3}, "digits"),
        ({"name": "d", "dataset": "digits"}, {"dataset": "digits"}, "d"),
        ({"name": "d", "dataset": "digits"}, {"dataset": "a/b.v2/"}, "d-b.v2"),
        ({"name": "d", "backbone": "r"}, {"backbone": ["vit.x", "r"]}, "d-vit.x+r"),
        ({"name": "d", "backbone": "r"}, {"backbone": ["r"]}, "d"),
        ({"name": "d", "backbone": ["r", "s"]}, {"backbone": "r"}, "d-r"),
        ({"name": "d", "backbone": "r"}, {"backbone": ["x" * 99, "y"]}, "d-" + "x" * 98),
        ({"name": "d"}, {"init": ["weights", "none"]}, "d-weights+none"),
        ({"name": "d"}, {"dataset": "x", "search.sampler": "tpe"}, "d-x-tpe"),
        ({"name": "digits"}, {"search.sampler": "my.py:Mine"}, "digits-Mine"),
        ({"name": "d", "search": {"sampler": "my.py:Mine"}}, {}, "d"),
        ({"name": "d"}, {"name": "other", "search.sampler": "gp"}, "other"),
        ({"name": "d"}, {"name": 7}, "7"),
        ({"name": 7}, {}, "7"),
        ({}, {"dataset": "path/to/ants"}, "ants"),
        ({"dataset": "path/to/images"}, {"dataset": "path/to/ants/"}, "ants"),
        ({"dataset": "path/to/images"}, {}, "images"),
        ({"dataset": "a/mes photos (été)!"}, {}, "mes-photos-ete"),
        ({"dataset": "a/写真"}, {}, "stem"),
        ({"dataset": "/"}, {}, "stem"),
        ({"dataset": "x" * 300}, {}, "x" * 100),
        ({"dataset": None}, {}, "stem"),
        ({"dataset": ["a"]}, {}, "stem"),
        ({"dataset": "a/_-b-_"}, {}, "b"),
        ({"dataset": "a/table.CSV"}, {}, "table"),
        ({"dataset": "photos.tar.gz"}, {"dataset": "x/photos.v2.zip"}, "photos.v2"),
        ({"dataset": ".zip"}, {}, "zip"),
        ({"dataset": "hf://owner/name"}, {}, "name"),
        ({"dataset": "hf://owner/name@main/config.zip?label=x/y"}, {}, "name-config.zip"),
        ({"name": "d", "dataset": "x"}, {"dataset": "hf://owner/na.me@refs%2Fpr%2F1"}, "d-na.me"),
    ],
)
def test_the_name_of_a_study(base: dict[str, Any], overrides: dict[str, Any], name: str) -> None:
    assert study_name(base, overrides, "stem") == name


def test_the_working_directory_gives_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "ants" / "raw"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert study_name({}, {"dataset": "."}, "folder") == "raw"
    assert study_name({}, {"dataset": ".."}, "folder") == "ants"
    assert study_name({}, {"dataset": "../"}, "folder") == "ants"
    assert study_name({"name": "d"}, {"dataset": "."}, "folder") == "d-raw"


def test_names_that_are_given_are_not_changed(study: Path) -> None:
    assert load_study_file(str(study), name="other").name == "other"
    assert load_study_file(str(study)).name == "ants"
    for given in (["name=my study"], ["name=-x"]):
        with pytest.raises(ConfigError, match="name: a study's name has up to 100 letters"):
            load_study_file(str(study), given)
    study.write_text(MINIMAL + "name: my study\n")
    with pytest.raises(ConfigError, match="but got 'my study-tpe'"):
        load_study_file(str(study), ["search.sampler=tpe"])


def test_paths_of_plugins_are_relative_to_the_study_file(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.write_text(
        MINIMAL + "search: {sampler: own/a.py:A, pruner: /b.py:B}\nspace: {custom: ../c.py:c}\n"
    )
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    folder = study.parent
    config = load_study_file(str(study))
    assert config.search.sampler == f"{folder}/own/a.py:A"
    assert config.search.pruner == "/b.py:B"
    assert config.space.custom == f"{folder.parent}/c.py:c"
    config = load_study_file(str(study), ["search.sampler=a.py:A", "space={custom: d.py:d}"])
    assert config.search.sampler == f"{cwd}/a.py:A"
    assert config.space.custom == f"{cwd}/d.py:d"
    assert config.search.pruner == "/b.py:B"
    assert config.name == "ants-A"
    assert load_study_file(str(study), ["search.sampler=b.py:B"]).name == "ants-B"


def test_slug() -> None:
    assert slug("Éléphants & co/") == "Elephants-co"
    assert slug("写真") == ""


# The package


def test_the_public_names_are_listed() -> None:
    import autotune

    assert dir(autotune) == sorted(autotune.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        autotune.nothing  # noqa: B018
