"""YAML that is made to be too much: refused at once, in one message."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import yaml

from autotune.errors import ConfigError, UserError
from autotune.studyfile import parse_overrides, presets, read_yaml
from autotune.yamlfile import MAX_BYTES, LimitError, parse_yaml
from tests.support.inside import call


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
    "deep mappings": ("a: " + "{b: " * 5_000 + "1" + "}" * 5_000, "levels deep"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(200)), "levels deep"),
    "deep dashes": ("a: \n" + "- " * 500 + "b", "levels deep"),
    "many values": ("a: [" + "1, " * 30_000 + "1]", "values"),
    "a long value": ("a: " + "x" * 20_000, "characters"),
    "a number in base 60": ("a: 1" + ":59" * 20_000, "characters"),
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


@pytest.mark.parametrize("name", ["aliases", "deep lists", "a list in itself", "a long value"])
def test_an_override_that_is_too_much(name: str) -> None:
    text, words = BOMBS[name]
    value = text.partition(": ")[2] if name != "aliases" else "{" + text.replace("\n", ", ") + "}"
    with pytest.raises(ConfigError, match=words):
        parse_overrides([f"space={value}"])


def test_the_command_ends_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(bomb())
    for verb in ("validate", "run", "status"):
        ended = call(verb, "bomb.yaml", cwd=tmp_path)
        assert ended.code == 2 and ended.err.count("error: ") == 1
        assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.yaml", bomb()),
        ("plan.yaml", "a: &a [*a]"),
        ("plan.json", "[" * 200_000),
        ("plan.json", '{"a":' * 200_000),
        ("plan.json", "1" * 10_000),
        ("plan.yaml", "[" * 200_000),
    ],
)
def test_a_plan_that_is_too_much(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    ended = call("layers", "--plan", name, cwd=tmp_path)
    assert ended.code == 2 and ended.err.count("error: ") == 1
    assert "--plan must be" in ended.err


def test_aliases_may_be_used() -> None:
    assert parse_yaml("a: &x {b: [1, 2]}\nc: *x") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
    }
    with pytest.raises(yaml.YAMLError):
        parse_yaml("a: *nothing")


def test_what_ships_is_far_below_the_limits() -> None:
    for path in presets().values():
        assert read_yaml(path) and path.stat().st_size < MAX_BYTES / 50
    assert issubclass(LimitError, yaml.YAMLError) and issubclass(ConfigError, UserError)
