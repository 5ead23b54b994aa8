"""A refitted model: its network with the preprocessing of its images, and its predictions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from autotune.data.image_files import Shrink, UnreadableImageError, read_image, to_rgb
from autotune.data.preprocessing import ImageSpec, draft_decode, to_store_array
from autotune.errors import UserError, join_sentences
from autotune.models.ensemble import Ensemble
from autotune.models.network import Network
from autotune.plan import TrialPlan
from autotune.study.state import oom
from autotune.training.inputs.normalizer import Normalizer

#: An image of Pillow, or the path of an image file.
ImageOrPath = Image.Image | str | os.PathLike[str]


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network and how to prepare its images.

    Args:
        plan: The plan of the backbone's layers and of the head.
        classes: Names of the classes, in the order of the logits.
        data_config: timm's data configuration of the backbone.
        image_size: Side of the input as configured; ``None`` for that of the backbone.
        fast_decode: Whether large JPEG files are decoded at a reduced size.
        timm_config: ``config.json`` of a backbone that is no model of timm's list.
        members: The networks of an ensemble, each with its weight. The other fields are then
            those of the first of them, and the images those of the one with the largest size.
    """

    plan: TrialPlan
    classes: tuple[str, ...]
    data_config: Mapping[str, Any]
    image_size: int | None = None
    fast_decode: bool = False
    timm_config: Mapping[str, Any] | None = None
    members: tuple[tuple[int, ModelSpec], ...] = ()

    @property
    def spec(self) -> ImageSpec:
        """The preprocessing of images."""
        if self.members:  # max() takes the first of equals
            return max((member.spec for _, member in self.members), key=lambda spec: spec.size)
        return ImageSpec.from_data_config(self.data_config, self.image_size)


def _describe_wrong_type(value: object) -> str:
    """Say what an image has to be, and what makes one of a value that is none."""
    ways = {
        bytes: "PIL.Image.open(io.BytesIO(content)) opens the content of a file",
        np.ndarray: "PIL.Image.fromarray(pixels) makes an image of uint8 (height, width, 3)",
        Tensor: "normalized images go to model.probabilities(tensor)",
    }
    way = next((way for kind, way in ways.items() if isinstance(value, kind)), "")
    return join_sentences(
        "an image must be a path (str or pathlib.Path) or a PIL.Image.Image, but got "
        f"{type(value).__name__}",
        way,
    )


def join_networks(networks: Sequence[Network], spec: ModelSpec) -> Ensemble:
    """Return the ensemble of the networks of ``spec.members``, in their order."""
    formats = [member.spec for _, member in spec.members]
    return Ensemble(networks, [weight for weight, _ in spec.members], formats, spec.spec)


class Model(nn.Module):
    """A refitted network, or an ensemble of them, with its preprocessing.

    After loading it is in evaluation mode and on the CPU. ``to`` and ``train`` work as in any
    module; ``train`` leaves the frozen layers in evaluation mode.

    Example:
        >>> model = autotune.load("storage/autotune.files/models/digits")  # doctest: +SKIP
        >>> model.predict(["a.jpg", "b.jpg"]).argmax(dim=1)  # doctest: +SKIP

    Args:
        digest: SHA-256 of its weights file, hexadecimal; empty where there is none.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        spec: The preprocessing of images.
    """

    def __init__(
        self, network: Network | Ensemble, model_spec: ModelSpec, digest: str = ""
    ) -> None:
        super().__init__()
        self.network = network
        self.model_spec = model_spec
        self.digest = digest
        self.classes = model_spec.classes
        self.spec = model_spec.spec
        self._normalize = Normalizer.from_config(asdict(self.spec), torch.device("cpu"))
        # Images at a time, once a larger number has not fitted into memory.
        self._micro_batch_size: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of normalized images ``(N, 3, size, size)``."""
        logits: Tensor = self.network(images)
        return logits

    def transform(self, image: Image.Image) -> Tensor:
        """Resize, crop and normalize an image like the validation images of the study.

        Args:
            image: An upright image of any mode. Pillow does not turn a photo by its EXIF
                orientation when it opens a file; :meth:`read` does.

        Returns:
            float32, ``(3, size, size)``.

        Raises:
            OSError: When the image is far longer than wide.
        """
        return self._normalize(self.crop(image)[None])[0].contiguous()

    def crop(self, image: Image.Image) -> Tensor:
        """Resize and crop an image as :meth:`transform` does; return uint8 ``(3, size, size)``."""
        pixels = to_store_array(to_rgb(image), self.spec)
        size = self.spec.size
        edge = (self.spec.store_size - size) // 2
        return torch.from_numpy(
            np.ascontiguousarray(pixels[:, edge : edge + size, edge : edge + size])
        )

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """Read an image file as the study does, and transform it.

        Raises:
            OSError: When the file is not an image, or is damaged; it names the file.
            TypeError: When ``path`` is no path.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(_describe_wrong_type(path))
        if os.path.isdir(path):
            raise UnreadableImageError(
                f"{os.fspath(path)!r} must be an image file, but it is a folder; give its files, "
                "for example sorted(pathlib.Path(folder).glob('*.jpg')), or run 'autotune predict'"
            )
        try:
            return self.transform(read_image(path, self.shrink))
        except OSError as error:
            raise UnreadableImageError(f"{os.fspath(path)!r}: {error}") from error

    @property
    def shrink(self) -> Shrink | None:
        """What reduces an image before it is decoded, where the study does so."""
        return partial(draft_decode, spec=self.spec) if self.model_spec.fast_decode else None

    def predict(self, images: ImageOrPath | Iterable[ImageOrPath], batch_size: int = 64) -> Tensor:
        """Return the probabilities of the classes.

        Args:
            images: Images of Pillow, or paths of image files; or one of either.
            batch_size: Images that go through the network at a time.

        Returns:
            float32 on the CPU, ``(N, classes)``; rows sum to 1.

        Raises:
            OSError: When a file cannot be read; it names the file.
            TypeError: When something is neither a path nor an image of Pillow.
            ValueError: When ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but got {batch_size}")
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        is_array = isinstance(images, np.ndarray) and images.dtype.kind not in "OUT"  # of paths
        is_other = isinstance(images, bytes | Tensor) or not isinstance(images, Iterable)
        if is_array or is_other:
            raise TypeError(_describe_wrong_type(images))
        tensors = (
            self.transform(image) if isinstance(image, Image.Image) else self.read(image)
            for image in images
        )
        batches = [torch.empty(0, len(self.classes))]
        while batch := list(islice(tensors, batch_size)):  # no more of them are in memory
            batches.append(self.probabilities(torch.stack(batch)))
        return torch.cat(batches)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities ``(N, classes)`` of normalized images, on the CPU.

        See :meth:`logits`.
        """
        return self.logits(images).softmax(dim=1)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of normalized images, float32 on the CPU.

        The network runs in evaluation mode, whatever its mode is. Images that do not fit into the
        memory of its device together go through it in halves, quarters and so on.

        Raises:
            UserError: When not even one image fits into memory.
        """
        training = self.training
        device = next(self.parameters()).device

        def run(micro_batch: int) -> Tensor:
            return torch.cat([self(some.to(device)) for some in torch.split(images, micro_batch)])

        def on_halved(micro_batch: int, shortage: oom.MemoryShortage) -> None:
            if not shortage.is_shared_device:  # else there may be more room for the next images
                self._micro_batch_size = micro_batch

        try:
            self.eval()
            size = min(len(images), self._micro_batch_size or len(images))
            logits = oom.with_oom_backoff(run, size, device, least=1, on_halved=on_halved)
        except oom.DoesNotFitError as error:
            raise UserError(
                f"an image must fit into memory, but {error}; take a larger device, or stop the "
                "other processes on this one"
            ) from error
        finally:
            self.train(training)
        return logits.float().cpu()
