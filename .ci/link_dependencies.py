"""Links what a wheel requires from the environment of this Python into another one.

An environment with the wheel alone has to prove that its requirements are complete: it must lack
what the tests install, and the checkout. To install them a second time would unpack gigabytes, so
they are links: python .ci/link_dependencies.py dist/autotune-*.whl other/lib/.../site-packages
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements_of(wheel: Path) -> list[Requirement]:
    """Read what a wheel requires, with its extras as markers."""
    with ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return Metadata.from_email(archive.read(name), validate=False).requires_dist or []


def required(wanted: Iterable[Requirement]) -> dict[str, Distribution]:
    """Find the distributions that are required, and those that these require."""
    found: dict[str, Distribution] = {}
    waiting, seen = [(one, "") for one in wanted], set()
    while waiting:
        one, extra = waiting.pop()
        if (str(one), extra) in seen or (one.marker and not one.marker.evaluate({"extra": extra})):
            continue
        seen.add((str(one), extra))
        installed = found.setdefault(canonicalize_name(one.name), distribution(one.name))
        if not one.specifier.contains(installed.version, prereleases=True):
            sys.exit(f"{one} is required, but {installed.version} is there")
        more = [Requirement(text) for text in installed.requires or ()]
        waiting += [(each, name) for each in more for name in ("", *one.extras)]
    return found


def link(installed: Distribution, target: Path) -> None:
    """Link the packages, modules and metadata of a distribution."""
    assert installed.files is not None, f"{installed.name} does not list its files"
    for top in {file.parts[0] for file in installed.files} - {"..", "__pycache__"}:
        if not (target / top).exists():  # some packages share a folder
            (target / top).symlink_to(Path(str(installed.locate_file(top))))


if __name__ == "__main__":
    wheel, target = map(Path, sys.argv[1:])
    distributions = required(requirements_of(wheel))
    for one in distributions.values():
        link(one, target)
    print(f"{wheel.name} requires {len(distributions)} packages")
