"""YAML that is made to be too much: refused at once, in one message."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import yaml

from autotune.config.loading import load_study_file, parse_overrides, read_yaml
from autotune.config.safe_yaml import MAX_BYTES, parse_yaml
from autotune.errors import MAX_PROBLEMS, ConfigError
from tests.support.commands.inside import call


def bomb(levels: int = 12, each: int = 10) -> str:
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * each)}]")
    return "\n".join(lines)


BOMBS = {
    "aliases": (bomb(), "values, those behind aliases counted"),
    "merges": (
        "a0: &a0 {x: 1, y: 2}\n"
        + "\n".join(
            f"a{i}: &a{i} {{k{i}: [{', '.join([f'*a{i - 1}'] * 9)}], <<: *a{i - 1}}}"
            for i in range(1, 12)
        ),
        "values, those behind aliases counted",
    ),
    "a list in itself": ("a: &a [*a]", "without end"),
    "a mapping in itself": ("a: &a {b: {c: [1, *a]}}", "without end"),
    "deep lists": ("a: " + "[" * 100_000 + "]" * 100_000, "levels deep"),
    "many values": ("a: [" + "1, " * 30_000 + "1]", "values"),
    "a long value": ("a: " + "x" * 20_000, "characters"),
    "a number in base 60": ("a: 1" + ":59" * 20_000, "characters"),
    "a chain of aliases": (
        "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 1}]" for i in range(150)),
        "levels deep",
    ),
    "a number of base 16": ("search: {trials: 0x" + "f" * 9_000 + "}", "at most 18 digits"),
    "a number of base 60, not too long": ("a: 1" + ":59" * 3_000, "at most 18 digits"),
    "a huge file": ("# " + "x" * (MAX_BYTES + 1), "bytes"),
}


@pytest.mark.parametrize(("text", "words"), BOMBS.values(), ids=BOMBS)
def test_a_study_file_that_is_too_much(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(ConfigError, match=words) as caught:
        read_yaml(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 10  # 34 s and 2.4 GB once
    assert after.ru_maxrss - before.ru_maxrss < 200 * 1024
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "value",
    [
        *("!!int ''", "!!int x", "!!float ''", "!!float x", "!!bool x", "!!timestamp x"),
        *("1" + ":1" * 4_000 + ".5", '"\\Uffffffff"', "1" * 9_000, "2001-99-99", "!!binary a"),
        *("!!python/name:os.system", "!!python/object/apply:os.system [x]", "!!python/tuple [1]"),
        *("{<<: 1}", "{[1]: 2}", "{{a: b}: c}", "*nothing", "a\0b"),
    ],
)
def test_a_value_that_does_not_fit_its_type(value: str, tmp_path: Path) -> None:
    """PyYAML raises errors of all kinds; they are one message, wherever the value is."""
    path = tmp_path / "study.yaml"
    path.write_text(f"name: {value}\n")
    with pytest.raises(ConfigError, match="is not valid YAML") as caught:
        read_yaml(path)
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(ConfigError, match=r"search\.trials: must be a YAML value"):
        parse_overrides([f"search.trials={value}"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_a_file_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes("dataset: digits\nname: é\n".encode(encoding))
    with pytest.raises(ConfigError, match="must be text in UTF-8"):
        read_yaml(path)
    path.write_bytes("dataset: digits\n".encode("utf-8-sig"))
    assert read_yaml(path) == {"dataset": "digits"}


@pytest.mark.parametrize("key", ["." * 3_000, "a.b" + ".c" * 5_000])
def test_a_key_of_thousands_of_parts(key: str) -> None:
    with pytest.raises(ConfigError, match="at most 32 dots") as caught:
        load_study_file("digits", [f"{key}=1"])
    assert len(str(caught.value)) < 1_000


def test_messages_stay_short_and_in_their_lines(tmp_path: Path) -> None:
    """Of thousands of mistakes some are shown; no key or value adds lines."""
    path = tmp_path / "study.yaml"
    base = "dataset: digits\nbackbone: resnet18\n"
    path.write_text(base + "".join(f"k{i}: 1\n" for i in range(3_000)))
    with pytest.raises(ConfigError, match="3,000 mistakes") as caught:
        load_study_file(str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == MAX_PROBLEMS + 2 and lines[-1] == "  and 2,950 more"
    path.write_text(base + 'search: {seed: "' + "x" * 9_000 + '"}\n"a\\e[2J\\nerror: b": 1\n')
    with pytest.raises(ConfigError, match="2 mistakes") as caught:
        load_study_file(str(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and max(map(len, lines)) < 1_000
    assert lines[2].startswith("  a\\x1b[2J\\nerror: b: unknown key")


def test_a_huge_number_of_python() -> None:
    with pytest.raises(ConfigError, match="got a number of more than 19 digits"):
        load_study_file("digits", {"search.trials": 10**5_000})


@pytest.mark.parametrize("name", ["aliases", "deep lists", "a list in itself", "a long value"])
def test_an_override_that_is_too_much(name: str) -> None:
    text, words = BOMBS[name]
    value = text.partition(": ")[2] if name != "aliases" else "{" + text.replace("\n", ", ") + "}"
    with pytest.raises(ConfigError, match=words):
        parse_overrides([f"space={value}"])


def test_the_command_ends_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(bomb())
    for verb in ("validate", "run", "status"):
        result = call(verb, "bomb.yaml", cwd=tmp_path)
        assert result.code == 2 and result.err.count("error: ") == 1
        assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.yaml", bomb()),
        ("plan.json", "[" * 200_000),
        ("plan.json", "1" * 10_000),
    ],
)
def test_a_plan_that_is_too_much(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    result = call("layers", "--plan", name, cwd=tmp_path)
    assert result.code == 2 and result.err.count("error: ") == 1
    assert "--plan must be" in result.err


def test_aliases_may_be_used() -> None:
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
    }
    with pytest.raises(yaml.YAMLError):
        parse_yaml("a: *nothing")
