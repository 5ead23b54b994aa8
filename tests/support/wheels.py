"""Packages without modules, of the standard library alone: a build backend uses it too."""

from __future__ import annotations

import zipfile
from pathlib import Path


def wheel(folder: Path, name: str, version: str, *metadata: str, scripts: str = "") -> str:
    """Write the wheel of a package without modules; return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    head = (f"Name: {name}", f"Version: {version}", *metadata)
    with zipfile.ZipFile(folder / file, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(("Metadata-Version: 2.1", *head)) + "\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/entry_points.txt", scripts)
        archive.writestr(f"{info}/RECORD", "")
    return file
