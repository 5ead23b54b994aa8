"""The rules of the house, see docs/architecture.md: imports run one way, without circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import autotune

PACKAGE = Path(autotune.__file__).parent
ROOT = PACKAGE.parent
#: Floors of the house: a room imports from lower floors only, never from one beside it.
LEVELS = (
    ("lazy", "optuna_private", "runtime", "text", "version"),
    ("errors", "events", "file_kinds"),
    ("atomic", "format_versions"),
    ("plan",),
    ("config",),
    ("models", "data", "storage"),
    ("training", "search", "loggers"),
    ("study",),
    ("results",),
    ("display",),
    ("cli", "api"),
)
#: The same inside each room: its packages and modules, lowest floor first.
FLOORS = {
    "config": (
        ("fields", "old_names", "safe_yaml"),
        ("backbones", "notification", "weights"),
        ("schema",),
        ("text_values",),
        ("validation",),
        ("loading",),
    ),
    "data": (
        ("progress", "image_formats", "damage", "memory_budget", "drawing"),
        ("image_files",),
        ("preprocessing", "source"),
        ("download",),
        ("sources",),
        ("cache",),
        ("splits",),
        ("views",),
        ("quality",),
    ),
    "models": (
        ("pretrained", "device_errors", "layers", "meta_device"),
        ("backbone",),
        ("flops", "image_border", "surgery"),
        ("fitting",),
        ("network",),
        ("ensemble", "heat_maps", "inspection", "prefix"),
    ),
    "training": (
        ("linear_head", "metrics", "inputs"),
        ("curves",),
        ("checkpoint",),
        ("compute", "optim"),
        ("evaluation", "fitted_start"),
        ("trainer",),
        ("cost_profile", "features", "folds"),
    ),
    "search": (
        ("ranking", "parameters"),
        ("backbone_limits", "study_view"),
        ("space",),
        ("space_checks",),
        ("deduplication", "initial_plans", "manual_plans", "plugins"),
        ("greedy", "pruners"),
        ("samplers",),
    ),
    "loggers": (
        ("packages",),
        ("background", "tensorboard", "mlflow", "wandb", "notification"),
        ("opening",),
    ),
    "storage": (("url", "filesystem", "artifacts"), ("paths", "rdb", "commands"), ("admin",)),
    "study": (
        ("state",),
        ("devices", "setup"),
        ("doctor", "trial"),
        ("engine", "upkeep"),
        ("race",),
    ),
    "results": (
        ("values",),
        ("model", "study_results"),
        ("noise",),
        ("comparison", "seeds", "cheapest"),
        ("evaluation", "figures"),
        ("diagnosis",),
        ("overview", "report"),
        ("dashboard",),
    ),
    "display": (
        (
            "config_errors",
            "download_progress",
            "worker_table",
            "layer_table",
            "comparison",
            "status",
            "worker_states",
        ),
        ("console",),
        ("run_display", "summary"),
        ("trainings_display", "watch"),
    ),
    "api": (("reader",), ("plots",), ("study",), ("seeds",)),
    "cli": (("plan_file", "sigint"), ("resources", "results", "running"), ("main",)),
}
MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parts[len(PACKAGE.parts)] != "presets"
)


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "(package)" if first in ("__init__", "__main__") else first


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


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def levels_of(floors: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {room: level for level, rooms in enumerate(floors) for room in rooms}


def parts_inside(room: str) -> set[str]:
    inside = {
        path.relative_to(PACKAGE / room).parts[0].removesuffix(".py")
        for path in MODULES
        if path.is_relative_to(PACKAGE / room)
    }
    return inside - {"__init__"}


def internal_imports(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line and dotted parts below ``autotune`` of every import from the package."""
    for line, name in imports(path):
        if name.startswith("autotune.") and name != "autotune.__version__":
            yield line, name.split(".")[1:]


def test_the_rooms_are_those_of_the_map() -> None:
    assert {room_of(path) for path in MODULES} == {"(package)", *levels_of(LEVELS)}
    for room, floors in FLOORS.items():
        assert parts_inside(room) == set(levels_of(floors)), room


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "(package)":
        return
    level, inside = levels_of(LEVELS), levels_of(FLOORS.get(room, ()))
    part = module_name(path).split(".")[2:3]
    for line, (other, *rest) in internal_imports(path):
        place = f"{path.relative_to(ROOT)}:{line}"
        assert other == room or level[other] < level[room], f"{place}: {room} imports {other}"
        if other == room and part and rest and rest[:1] != part:
            assert inside[rest[0]] < inside[part[0]], f"{place}: {part[0]} imports {rest[0]}"


def test_no_circle_of_files() -> None:
    """Imports for type checkers alone count too."""
    modules = {module_name(path): path for path in MODULES}
    graph = {name: set[str]() for name in modules}
    for name, path in modules.items():
        for _, parts in internal_imports(path):
            full = ".".join(["autotune", *parts])
            graph[name].add(full if full in modules else full.rpartition(".")[0])
    graph["autotune"] = set()  # its names are for type checkers, and loaded on first use
    TopologicalSorter(graph).prepare()


def test_folders_stay_small() -> None:
    for folder in (PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())):
        assert len([*folder.glob("*.py")]) <= 13, folder


@pytest.mark.parametrize("folder", ["studies", "storage"])
def test_data_folders_hold_no_python(folder: str) -> None:
    assert [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.ipynb")] == []


def test_no_room_for_everything() -> None:
    names = {part for path in MODULES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        ("import autotune", {"pydantic", "yaml"}),
        ("import autotune.cli.main", {"plotly"}),
        ("import autotune; autotune.load_study_file('digits')", {"plotly"}),
    ],
)
def test_imports_are_light(program: str, heavy: set[str]) -> None:
    loaded = run_python(f"{program}; import sys; print(*sorted(sys.modules))").split()
    assert not heavy & set(loaded)
    assert not {"torch", "optuna", "pandas", "numpy", "sqlalchemy", "timm"} & set(loaded)
    if program == "import autotune":
        inside = [name for name in loaded if name.startswith("autotune.")]
        assert inside == ["autotune.lazy", "autotune.version"]


@pytest.mark.parametrize("room", ["", *sorted(FLOORS.keys() - {"cli", "display"})])
def test_every_public_name_resolves(room: str) -> None:
    package = import_module(f"autotune.{room}".rstrip("."))
    assert package.__all__ == sorted(set(package.__all__))
    for name in package.__all__:
        assert getattr(package, name) is not None
