"""A key that holds only text has the text that was written, and says so where YAML cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.config.loading import get_dotted, load_study_file, parse_overrides
from autotune.config.text_values import text_keys
from autotune.errors import ConfigError
from tests.support.commands.inside import call

#: Names that YAML cuts, changes or refuses.
NAMES = ("photos #2", "2024_11", "null", "on", "a: b", "[x]", "~", "it's", " a ", "*a", "{a")


def test_the_text_keys_are_those_of_the_model() -> None:
    keys = text_keys()
    optional = {key for key, kind in keys.items() if kind.is_optional}
    assert {"dataset", "weights", "storage", "description", "search.sampler"} <= keys.keys()
    assert {"name", "files", "notify", "data.group", "data.protocol", "space.custom"} <= optional
    assert {key for key, kind in keys.items() if kind.is_list} == {
        *("backbone", "weights", "search.warm_start", "objectives", "loggers")
    }
    numbers = ("search.trials", "training.num_views", "refit.ema", "init", "space.layers.width")
    assert not keys.keys() & set(numbers)


@pytest.mark.parametrize("key", ["dataset", "weights", "files", "backbone", "search.warm_start"])
@pytest.mark.parametrize("name", NAMES)
def test_text_on_the_command_line_is_taken_as_it_is(key: str, name: str) -> None:
    is_null = key == "files" and name == "null"
    is_list = key in ("backbone", "weights", "search.warm_start") and name.startswith("[")
    if key in ("backbone", "weights") and name.startswith("{"):
        with pytest.raises(ConfigError, match="must be a YAML value"):
            parse_overrides([f"{key}={name}"])
        return
    expected = None if is_null else ["x"] if is_list else name
    assert parse_overrides([f"{key}={name}"]) == {key: expected}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("backbone=[a.b, 1e3, null, 2024_11]", ["a.b", "1e3", "null", "2024_11"]),
        ("backbone=[resnet18, 'a, b']", ["resnet18", "a, b"]),
        ("objectives=[accuracy, latency_ms]", ["accuracy", "latency_ms"]),
        ("search.warm_start=", None),
        ("data.group=^([^/#]+) #(\\d)", "^([^/#]+) #(\\d)"),
        ("training.amp=off", "off"),  # a key under its old name
        ("data.duplicates=off", "off"),
        ("search.trials=0x1F", 31),
        ("data={group: '^(a)'}", {"group": "^(a)"}),
        ("data.splits={train: 01, test: [on, 1_0]}", {"train": "01", "test": ["on", "1_0"]}),
        ("data.splits=null", None),
        ("weights={a.b: 01, c: none}", {"a.b": "01", "c": "none"}),
        ("weights=null", "null"),
        *((f"{key}={text}", None) for key in ("data.group", "files") for text in ("", "null")),
    ],
)
def test_lists_numbers_and_null(override: str, value: object) -> None:
    assert list(parse_overrides([override]).values()) == [value]


def test_a_text_has_a_limit() -> None:
    with pytest.raises(ConfigError, match="dataset: must be a YAML value, but a value must have"):
        parse_overrides(["dataset=" + "x" * 20_000])


@pytest.mark.parametrize("name", ["photos #2", "2024_11", "null", "it's"])
def test_every_way_takes_the_same_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_study_file("folder", [f"dataset={name}"]).dataset == name
    assert load_study_file("folder", {"dataset": name}).dataset == name
    assert load_study_file("folder", {"dataset": Path(name)}).dataset == name
    quoted = name.replace("'", "''")
    (tmp_path / "my.yaml").write_text(f"dataset: '{quoted}'\nbackbone: resnet18\n")
    assert load_study_file("my.yaml").dataset == name


@pytest.mark.parametrize("name", ["photos #2", "2024_11", "null", "--name=on"])
def test_the_commands_open_the_folder_of_that_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    arguments = ("--", name) if name.startswith("-") else (name,)
    ended = call("data", "info", *arguments, cwd=tmp_path)
    assert ended.code == 2 and f"but {name!r} is none of these" in ended.err
    ended = call("data", "info", "digits", f"dataset={name}", cwd=tmp_path)
    assert ended.code == 2 and f"but {name!r} is none of these" in ended.err
    url = "sqlite:///a #1.db"
    ended = call("status", "digits", "--storage", url, cwd=tmp_path)
    assert ended.code == 2 and "a #1.db" in ended.err


# Study files


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dataset: 2024_11", "must be text, but YAML reads 2024_11 as the number 202411"),
        (
            "dataset: on",
            "dataset: must be text, but YAML reads on as true; put it in quotes: 'on'",
        ),
        ("dataset: null", "YAML reads null as null; put it in quotes: 'null'"),
        ("dataset: 2024-11-30", "YAML reads 2024-11-30 as a date; put it in quotes: '2024-11-30'"),
        ("dataset: [it's]", "put it in quotes: '[it''s]'"),
        ("dataset: a: b", "text with such characters goes in quotes"),
        ("dataset: x\nname: 2024_11", "name: must be text, but YAML reads 2024_11 as the number"),
        ("dataset: x\nfiles: yes", "files: must be text, but YAML reads yes as true"),
        ("dataset: x\ndata: {group: 1_0}", "but got 10; YAML reads 1_0 as the number 10; put it"),
        ("dataset: x\nsearch:\n  warm_start: [a, 1_0]", "put it in quotes: '1_0'"),
        ("dataset: photos #2", "YAML reads #2 as a comment, but there is 'photos #2'; put it in"),
        ("dataset: &a b", "YAML reads &a b as 'b', but there is '&a b'; put it in quotes"),
        *(
            (f"dataset: {text}", "text with such characters goes in quotes")
            for text in ("=", "<<", "*a", "!a", "!a b", "[a #b]", "2024-13-45", "'a' 'b'")
        ),
        (f"dataset: {'9' * 20}", "must have at most 18 digits, but that of line 2 has more; text"),
        ("name: [a]\ndataset: x", "name: must be text, but YAML reads [a] as ['a']"),
        (
            "dataset: x\ndata: {splits: {train: 01, test: on}}",
            "YAML reads 01 as the number 1 and on",
        ),
        ("dataset: x\ndata: {splits: {train: [2024_11]}}", "put it in quotes: '2024_11'"),
        ("dataset: x\ndata: {group: 2024-11-30}", "but got 2024-11-30; YAML reads"),
    ],
)
def test_a_study_file_says_what_yaml_reads(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photos #2", "&a b"):
        (tmp_path / name).mkdir()
    (tmp_path / "my.yaml").write_text(f"backbone: resnet18\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_study_file("my.yaml")
    assert message in str(caught.value) and "1 mistake" in str(caught.value)


@pytest.mark.parametrize("study", ["dataset=photos", "search.trials=3", "weights=my file"])
@pytest.mark.parametrize("verb", ["run", "status", "refit", "dashboard"])
def test_a_value_in_place_of_the_study_is_named(verb: str, study: str, tmp_path: Path) -> None:
    ended = call(verb, study, cwd=tmp_path)
    assert ended.code == 2 and "values come behind the study, such as folder" in ended.err


def test_what_is_replaced_or_means_itself_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(
        "name: 7\ndataset: 2024_11\nbackbone: resnet18  # small\nfiles: null\n"
        "data: {group: 2024_11, splits: {train: 2024, test: [2025]}}\n"
        "search: {pruner: null}\ntraining: {precision: off}\n"
    )
    config = load_study_file("my.yaml", ["dataset=2024_11", "data={validation: 0.3}"])
    assert (config.name, config.dataset, config.files) == ("7-2024_11", "2024_11", None)
    assert get_dotted(config.model_dump(), "search.pruner") == "none"
