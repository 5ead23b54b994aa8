"""The rules of the house, see docs and DESIGN: imports run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import autotune

PACKAGE = Path(autotune.__file__).parent
ROOT = PACKAGE.parent
#: Rooms by level; a room imports from lower levels only, never from one beside it.
LEVELS = (
    ("garbage", "interpreter", "texts", "threads", "yamlfile"),
    ("errors",),
    ("formats",),
    ("plan",),
    ("rules",),
    ("config",),
    ("studyfile",),
    ("models", "data", "storage"),
    ("training", "search"),
    ("study",),
    ("results",),
    ("cli",),
    ("api",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parts[len(PACKAGE.parts)] != "presets"
)


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "(package)" if first == "__init__" else first


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import, those in functions and for types alone too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_the_rooms_are_those_of_the_design() -> None:
    assert {room_of(path) for path in MODULES} == {"(package)", *LEVEL}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "(package)":
        return
    for line, name in imports(path):
        head, _, rest = name.partition(".")
        if head != "autotune" or rest == "__version__":
            continue
        other = rest.split(".")[0]
        assert other == room or LEVEL[other] < LEVEL[room], (
            f"{path.relative_to(ROOT)}:{line}: {room} imports {name}"
        )


def test_the_package_itself_imports_none_of_its_modules() -> None:
    """For type checkers it names where its public names come from."""
    code = (
        "import sys, autotune; print([one for one in sys.modules if one.startswith('autotune.')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["studies", "storage"])
def test_data_folders_hold_no_python(folder: str) -> None:
    assert [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.ipynb")] == []


def test_no_room_for_everything() -> None:
    names = {part for path in MODULES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_importing_the_package_is_free() -> None:
    loaded = run_python("import autotune, sys; print(*sorted(sys.modules))").split()
    assert not {"torch", "optuna", "pandas", "numpy", "pydantic", "yaml"} & set(loaded)


def test_the_command_starts_without_heavy_imports() -> None:
    loaded = run_python("import autotune.cli.main, sys; print(*sorted(sys.modules))").split()
    assert not {"torch", "optuna", "pandas", "numpy", "sqlalchemy", "timm"} & set(loaded)


def test_the_library_s_study_files_load_without_heavy_imports() -> None:
    loaded = run_python(
        "import autotune, sys; autotune.load_study_file('digits'); print(*sorted(sys.modules))"
    ).split()
    assert not {"torch", "optuna", "pandas", "numpy", "sqlalchemy"} & set(loaded)


def test_every_public_name_resolves() -> None:
    assert autotune.__all__ == sorted(autotune.__all__)
    assert len(set(autotune.__all__)) == len(autotune.__all__)
    for name in autotune.__all__:
        assert getattr(autotune, name) is not None
