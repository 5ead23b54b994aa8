"""A package with weights, and a hub that is down or back."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from autotune.models import backbone
from autotune.models.pretrained import names, packages

NAME = "test_resnet.r160_in1k"
PACKAGE = "weights-of-tests"


def random_model(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", num_classes=0)


def install_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package with weights of :data:`NAME`; its code must not run."""
    models = folder / PACKAGE.replace("-", "_") / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise AssertionError")
    (models / ".gitignore").touch()
    torch.save(random_model(1).state_dict(), models / "theirs.pth")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(packages.PACKAGES, NAME, PACKAGE)
    return models


def close_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every request to the hub fail, and its cache be empty."""

    def get_session() -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(names, "get_session", get_session)
    monkeypatch.setattr(backbone, "_cached", lambda repository: None)


def open_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub have other weights than the package."""
    monkeypatch.setattr(backbone, "_from_hub", lambda name, image_size: random_model(2))
