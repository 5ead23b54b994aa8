"""All mistakes of a study file at once, also those that only the backbone and the images show."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.errors import ConfigError
from autotune.study.definition import define
from tests.support.small import small_config


def test_a_good_file_is_defined(tmp_path: Path) -> None:
    definition = define(small_config(tmp_path))
    assert [layer.index for layer in definition.layers] == [1, 2, 3, 4, 5]
    assert definition.spec.size == 16
    assert len(definition.source.classes) == 10
    assert not (tmp_path / "study.db").exists()


def test_every_mistake_is_reported(tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        dataset="digitz",
        backbone="resnt18",
        storage="mysql://host/db",
    )
    with pytest.raises(ConfigError) as caught:
        define(config)
    assert [problem.key for problem in caught.value.problems] == ["storage", "dataset", "backbone"]
    message = str(caught.value)
    assert message.startswith("small: 3 mistakes")
    assert "did you mean 'digits'?" in message
    assert "did you mean 'resnet18'" in message


def test_a_depth_beyond_the_backbone_is_reported(tmp_path: Path) -> None:
    deep = small_config(tmp_path, space__depth={"low": 0, "high": 6})
    with pytest.raises(ConfigError, match="must be at most 5, the number of layers"):
        define(deep)


def test_pooling_that_the_backbone_does_not_have(tmp_path: Path) -> None:
    config = small_config(
        tmp_path,
        backbone="mobilenetv3_small_050",
        weights="none",
        space__head__pool=["keep", "max"],
        space__depth=1,
    )
    define(config)  # it pools as asked

    levit = small_config(
        tmp_path,
        backbone="levit_128s",
        weights="none",
        data__image_size=None,
        space__head__pool=["keep", "max"],
        space__depth=1,
    )
    with pytest.raises(ConfigError) as caught:
        define(levit)
    (problem,) = caught.value.problems
    assert problem.key == "space.head.pool"
    assert "cannot pool with 'max'" in problem.message
    assert "'levit_128s' allows keep" in problem.message
