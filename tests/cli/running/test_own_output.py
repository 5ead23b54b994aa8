"""A study that is run inside the folder of its images: what it writes there is no class."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands.inside import call
from tests.support.data.images import make_class_folders

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("closed_connections")]
TINY = (
    *("backbone=test_resnet", "weights=none", "data.image_size=32", "training.epochs=1"),
    *("training.num_views=1", "search.trials=2", "search.sampler=random"),
    *("space.trainable_layers=2", "--name", "own"),
)


@pytest.mark.parametrize(
    ("dataset", "storage", "overrides"),
    [
        (".", "", ()),
        (".", "sqlite:///mine.db", ()),
        (".", "sqlite:///db/mine.db", ("files=out",)),
        (".", "", ("files=.",)),
        ("../link", "", ("files=ant",)),
        ("../outside/../photos", "sqlite:////{root}/outside/a.db", ("files={root}/photos/x/y",)),
    ],
)
def test_it(dataset: str, storage: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    photos = make_class_folders(tmp_path / "photos", {"ant": 8, "bee": 8})
    (tmp_path / "link").symlink_to(photos)
    (tmp_path / "outside").mkdir()
    own = [text.format(root=str(tmp_path).lstrip("/")) for text in (storage, *overrides)]
    environment = {"AUTOTUNE_STORAGE": own[0]} if storage else {}
    own = [text.replace("files=tmp", "files=/tmp") for text in own]
    arguments = ("run", "folder", f"dataset={dataset}", *own[1:], *TINY)
    assert "16: 8 train" in call("data", "info", dataset, cwd=photos).out
    ended = call(*arguments, cwd=photos, **environment)
    assert ended.code == 0, ended.err
    ended = call("refit", "own", cwd=photos, **environment)
    assert ended.code == 0, ended.err
    info = call("data", "info", dataset, cwd=photos)
    assert (info.code, info.err) == (0, "")
    assert "16: 8 train" in info.out and "folders of autotune" in info.out
    ended = call(*arguments, "search.trials=3", cwd=photos, **environment)
    assert ended.code == 0, ended.err
