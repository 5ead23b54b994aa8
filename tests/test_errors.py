from __future__ import annotations

import errno

import pytest

from autotune import errors
from autotune.errors import (
    AutotuneError,
    ConfigError,
    DeviceError,
    DiskFullError,
    Problem,
    UserError,
    did_you_mean,
    disk_full_as_user_error,
    format_yaml,
    hide_passwords,
    is_transient_os_error,
    join_sentences,
)


def classes() -> list[type[Exception]]:
    members = vars(errors).values()
    return [kind for kind in members if isinstance(kind, type) and issubclass(kind, Exception)]


def test_the_tree_is_the_one_in_the_docstring() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        words = line.strip(" │├└─").split()
        if words and words[0] in {kind.__name__ for kind in classes()} and line.startswith("    "):
            indent = line.index(words[0])
            above = [(depth, name) for depth, name in above if depth < indent]
            drawn[words[0]] = above[-1][1] if above else "Exception"
            above.append((indent, words[0]))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in classes()}


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_error_has_the_exit_code_of_its_kind(kind: type[AutotuneError]) -> None:
    """2 for what the user can correct, 75 for what a new process corrects."""
    expected = 2 if issubclass(kind, UserError) else 75 if kind is DeviceError else 1
    assert kind.exit_code == expected


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("postgresql://u:secret@h/db", "postgresql://u:***@h/db"),
        (
            "storage='postgresql://u:sec@ret@h/db' and more",
            "storage='postgresql://u:***@h/db' and more",
        ),
        ("postgresql://u@corp:secret@h/db", "postgresql://u@corp:***@h/db"),
        ("postgresql://:secret@h/db", "postgresql://:***@h/db"),
        ("postgresql:/u:secret@h/db", "postgresql:/u:***@h/db"),
        (
            "postgresql://h/db?user=u&password=secret&x=1",
            "postgresql://h/db?user=u&password=***&x=1",
        ),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("hf://owner/name", "hf://owner/name"),
    ],
)
def test_passwords_are_hidden(text: str, hidden: str) -> None:
    assert hide_passwords(text) == hidden
    assert str(ConfigError(text, [Problem("k", text)])) == f"{hidden}: 1 mistake\n  k: {hidden}"


def test_values_are_shown_as_yaml_has_them() -> None:
    texts = [format_yaml(value) for value in (True, False, None, "x", 1, 0.5)]
    assert texts == ["true", "false", "null", "'x'", "1", "0.5"]


def test_nearest_names() -> None:
    assert did_you_mean("digts", ["digits", "photos"]) == "did you mean 'digits'?"
    assert did_you_mean("xyz", ["digits", "photos"]) == ""
    assert join_sentences("no such thing", "", "did you mean 'a'?") == (
        "no such thing; did you mean 'a'?"
    )


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_folder(code: int) -> None:
    message = "no space left on the disk of /data"
    with pytest.raises(DiskFullError, match=message), disk_full_as_user_error("/data"):
        raise OSError(code, "full")


def test_other_errors_of_the_system_pass() -> None:
    with pytest.raises(PermissionError), disk_full_as_user_error("/data"):
        raise PermissionError(errno.EACCES, "no")


@pytest.mark.parametrize(
    ("error", "is_transient"),
    [
        (OSError(errno.EIO, ""), True),
        (OSError(errno.ESTALE, ""), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (FileNotFoundError(errno.ENOENT, ""), False),
        (PermissionError(errno.EACCES, ""), False),
        (OSError(errno.ENOSPC, ""), False),
        (OSError("no number"), False),
    ],
    ids=repr,
)
def test_errors_after_which_another_try_may_succeed(error: OSError, is_transient: bool) -> None:
    assert is_transient_os_error(error) is is_transient
