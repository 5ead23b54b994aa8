"""A model folder is the model, and says what it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autotune.config.schema import AugmentConfig, DataConfig
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.study_data import StudyData
from autotune.errors import UserError
from autotune.results.model.model import Model
from autotune.results.model.model_folder import load_model
from autotune.study.state import oom
from autotune.training.inputs.normalizer import Normalizer
from tests.support.data.images import make_class_folders, photo
from tests.support.models.surgery import kept, pictures, saved

pytestmark = pytest.mark.usefixtures("idle_machine")


@pytest.mark.parametrize("fast", [False, True])
def test_the_transform_is_that_of_the_study(fast: bool, tmp_path: Path) -> None:
    images = make_class_folders(tmp_path / "images", {"a": 6, "b": 6}, (400, 300), ".jpg")
    photo(90, 400).convert("L").save(images / "a" / "000.jpg")
    turned = Image.Exif()
    turned[274] = 6
    photo(500, 200).save(images / "a" / "001.jpg", exif=turned)
    model = load_model(saved(tmp_path / "model", kept("mobilenetv3_small_050"), fast_decode=fast))
    size = model.model_spec.image_size
    spec = ImageSpec.from_data_config(model.model_spec.data_config, size)
    assert spec.store_size > spec.size
    decode = "fast" if fast else "exact"
    data = DataConfig(image_size=size, validation=0.25, test=0.25, decode=decode)
    task = StudyData.open(str(images), data, spec, tmp_path / "cache")
    views = task.train_validation_views(AugmentConfig(), 1, 0)
    normalize = Normalizer.from_config(model.model_spec.data_config, torch.device("cpu"))
    rows = sorted([*task.train_rows, *task.validation_rows])
    assert len(views) == len(rows) >= 6
    keys = sorted(f"{one.parent.name}/{one.name}" for one in images.rglob("*.jpg"))
    for position, row in enumerate(rows):
        path = images / keys[task.store.indices[row]]
        expected = normalize(views.view(position, 0)[None])[0]
        assert torch.equal(model.read(path), expected), path


def test_probabilities(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    images = [photo(100, 80, seed) for seed in range(5)]
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    found = model.predict(images, batch_size=2)
    assert found.shape == (5, 3) and torch.allclose(found.sum(dim=1), torch.ones(5))
    assert torch.equal(found, model.predict(paths, batch_size=2))
    assert torch.allclose(found, model.predict(images), atol=1e-6)
    assert model.predict([]).shape == (0, 3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, but got -1"):
        model.predict(images, batch_size=-1)
    with torch.no_grad():
        logits = model(torch.stack([model.transform(one) for one in images]))
    assert torch.allclose(found, logits.softmax(dim=1), atol=1e-6)
    model.train()
    assert torch.equal(found, model.predict(images, batch_size=2)) and model.training


def test_images_are_read_batch_by_batch(folder: Path) -> None:
    """A photo of 224 px takes 600 kB: no more than a batch of them is in memory."""
    model, sizes = load_model(folder), list[int]()
    model.network.register_forward_hook(lambda *args: sizes.append(len(args[2])))

    def photos() -> Iterator[Image.Image]:
        for number in range(5):
            assert sum(sizes) == number // 2 * 2
            yield photo(100, 80)

    assert len(model.predict(photos(), batch_size=2)) == 5 and sizes == [2, 2, 1]


def test_a_single_image_is_an_image(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    path = tmp_path / "a.png"
    photo(100, 80).save(path)
    expected = model.predict([path])
    for single in (path, str(path), photo(100, 80)):
        assert torch.equal(model.predict(single), expected)
    for several in ((path,), iter([str(path)]), {path: 1}, np.array([str(path)])):
        assert torch.equal(model.predict(several), expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "a path (str or pathlib.Path) or a PIL.Image.Image, but got NoneType"),
        (b"GIF89a", "but got bytes; PIL.Image.open(io.BytesIO(content)) opens"),
        (np.zeros((4, 4, 3), np.uint8), "but got ndarray; PIL.Image.fromarray(pixels) makes"),
        (torch.zeros(3, 4, 4), "but got Tensor; normalized images go to model.probabilities"),
        (7, "but got int"),
    ],
)
def test_what_is_no_image_is_refused_by_its_type(folder: Path, value: object, text: str) -> None:
    model = load_model(folder)
    for images in (value, [value]):
        with pytest.raises(TypeError) as caught:
            model.predict(images)
        assert text in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    for name, text in (
        ("page.jpg", "page.jpg': not an image but an HTML page"),
        ("none.jpg", "none.jpg': No such file or directory"),
        (".", "must be an image file, but it is a folder; give its files"),
    ):
        for images in (tmp_path / name, [str(tmp_path / name)]):
            with pytest.raises(OSError) as caught:
                model.predict(images)
            assert text in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("crowded", "expected"), [(False, [5, 2, 2, 1, 2, 2, 1]), (True, [])])
def test_images_that_do_not_fit_together_go_through_in_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, crowded: bool, expected: list[int]
) -> None:
    """The next ones as well, unless it was others that held the memory."""
    model = load_model(folder)
    images = pictures("test_resnet")[:1].expand(5, -1, -1, -1)
    whole = model.probabilities(images)
    need = oom.MemoryShortage(5, 1, 10) if crowded else oom.MemoryShortage(11, 10, 10)
    monkeypatch.setattr(oom, "measure_shortage", lambda error, device: need)
    monkeypatch.setattr(oom, "SHARED_WAITS_S", ())
    sizes: list[int] = []
    forward, left = Model.forward, iter([3, 3]) if crowded else None

    def short(self: Model, some: torch.Tensor) -> torch.Tensor:
        sizes.append(len(some))
        gives_out = len(some) > 2 if left is None else next(left, None) is not None
        if gives_out:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return forward(self, some)

    monkeypatch.setattr(Model, "forward", short)
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(model.probabilities(images), whole, atol=1e-5)
    assert sizes == (expected or [5, 2, 1, 1, 1, 1, 1, 5])


def test_an_image_that_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder).train()

    def none_fits(self: Model, some: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90000.00 GiB")

    monkeypatch.setattr(Model, "forward", none_fits)
    with pytest.raises(UserError, match="an image must fit into memory, but it wanted at least"):
        model.probabilities(pictures("test_resnet"))
    assert model.training


def test_modes_of_images(folder: Path) -> None:
    model = load_model(folder)
    grey = photo(100, 80).convert("L")
    assert torch.equal(model.transform(grey), model.transform(grey.convert("RGB")))
    clear = Image.new("RGBA", (100, 80), (0, 0, 0, 0))
    white = Image.new("RGB", (100, 80), "white")
    assert torch.equal(model.transform(clear), model.transform(white))
