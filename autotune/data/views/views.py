"""Views of images: each depends on its seed, image and number alone; in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from autotune.config.schema import AugmentConfig
from autotune.data.cache.decoded_images import ImageStore
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.augmentation import describe_augmentation, make_augmentation
from autotune.runtime import single_threaded

Pairs = list[tuple[int, int]]
#: Limits the memory of the cached views of one set of images, by default.
MEMORY_BYTES = 1 << 29


@dataclass(frozen=True, eq=False)
class ViewRenderer(Dataset[torch.Tensor]):
    """Renders views of the images in some rows of a store.

    It is small enough to be sent to a data-loading process.
    """

    store: ImageStore
    rows: np.ndarray
    spec: ImageSpec
    augment: AugmentConfig
    seed: int

    def __getitem__(self, pairs: Pairs) -> torch.Tensor:
        return self.render(pairs)  # for a data loader

    def render(self, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Render views: pairs of a position in ``rows`` and a number.

        Returns:
            uint8, ``(len(pairs), 3, size, size)``. Neither the state of torch's generators nor
            its number of threads is changed.
        """
        size = self.spec.size
        views = torch.empty((len(pairs), 3, size, size), dtype=torch.uint8)
        # sums over pixels are rounded by how many threads share them
        with single_threaded(), torch.random.fork_rng(devices=[]):
            for index, (position, number) in enumerate(pairs):
                views[index] = self._render(position, number)
        return views

    def _render(self, position: int, number: int) -> torch.Tensor:
        row = self.rows[position]
        # a copy: torch warns about tensors over read-only memory
        image = torch.from_numpy(np.array(self.store.images[row]))
        if number == 0:
            size = self.spec.size
            edge = (self.spec.store_size - size) // 2
            return image[:, edge : edge + size, edge : edge + size]
        # torch.manual_seed would seed the accelerators as well, which nothing restores
        seed = mix_seed(self.seed, int(self.store.indices[row]), number)
        torch.default_generator.manual_seed(seed)
        result: torch.Tensor = make_augmentation(self.spec, self.augment)(image)
        return result


def mix_seed(*values: int) -> int:
    """Mix whole numbers into one seed, the same in every process."""
    text = "/".join(str(value) for value in values)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


class Views:
    """Images with a fixed number of deterministic augmentations each.

    View 0 is the evaluation transform. The others depend on the seed, the image and the number
    of the view alone, so features that are computed from them can be stored and shared. When all
    of them fit into ``memory_limit_bytes``, each is rendered once and cached.

    Args:
        store: Decoded images.
        rows: int64, ``(N,)``: rows of the store.
        spec: What the backbone expects.
        augment: The augmentation.
        views: Number of views of each image, at least 1.
        seed: Seed of the views, and of their order over epochs.
        memory_limit_bytes: Limits the memory of cached views.

    Attributes:
        labels: int64 tensor, ``(N,)``.
        views: Number of views of each image.
        shape: Shape of one view, ``(3, size, size)``.
        cached: The cached views, uint8 ``(N, views, 3, size, size)``, each once it was rendered;
            ``None`` without a cache.
    """

    def __init__(
        self,
        store: ImageStore,
        rows: np.ndarray,
        spec: ImageSpec,
        augment: AugmentConfig,
        views: int,
        seed: int,
        memory_limit_bytes: int = MEMORY_BYTES,
    ) -> None:
        if views < 1:
            raise ValueError(f"an image has at least 1 view, but got views={views}")
        self.views = views
        self.labels = torch.from_numpy(store.labels[rows])
        self.shape = (3, spec.size, spec.size)
        self._renderer = ViewRenderer(store, rows, spec, augment, seed)
        shape = (len(rows), views, *self.shape)
        self.cached: torch.Tensor | None = None
        if int(np.prod(shape)) <= memory_limit_bytes:
            self.cached = torch.empty(shape, dtype=torch.uint8)  # pages are taken when written
        self._is_cached = torch.zeros(shape[:2], dtype=torch.bool)
        generator = torch.Generator().manual_seed(mix_seed(seed))
        self._offsets = torch.randperm(len(rows), generator=generator)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each image: its name in the data set."""
        renderer = self._renderer
        return tuple(renderer.store.keys[row] for row in renderer.rows)

    @property
    def cache_bytes(self) -> int:
        """Memory of the cached views once all are rendered; 0 without a cache."""
        return 0 if self.cached is None else self.cached.nbytes

    def are_cached(self, positions: torch.Tensor, numbers: torch.Tensor) -> bool:
        """Tell whether views are cached: numbers of views, ``(M,)``, at positions, ``(M,)``."""
        return self.cached is not None and bool(self._is_cached[positions, numbers].all())

    def __len__(self) -> int:
        return len(self.labels)

    def view(self, position: int, number: int) -> torch.Tensor:
        """Return one view of one image, uint8, ``(3, size, size)``.

        Raises:
            IndexError: When there is no such image or view.
        """
        if not (0 <= position < len(self) and 0 <= number < self.views):
            raise IndexError(
                f"image and view must be below {len(self)} and {self.views}, but got {position} "
                f"and {number}"
            )
        if self.cached is not None and self._is_cached[position, number]:
            return self.cached[position, number].clone()
        return self._renderer.render([(position, number)])[0]

    def views_for_epoch(self, epoch: int | None) -> torch.Tensor:
        """Choose a view of each image for an epoch; view 0 of all for ``None``: int64, ``(N,)``.

        Every image goes through its views in turn, from its own first one, so that in every epoch
        all views are used evenly.
        """
        if epoch is None:
            return torch.zeros_like(self.labels)
        return (self._offsets + epoch) % self.views

    def fingerprint(self, positions: torch.Tensor, numbers: torch.Tensor) -> str:
        """Return a digest of what views show: numbers, ``(M,)``, at positions, ``(M,)``."""
        renderer = self._renderer
        digest = hashlib.blake2b(renderer.store.key.encode(), digest_size=16)
        digest.update(renderer.rows[positions.numpy()].astype("<i8").tobytes())
        digest.update(numbers.numpy().astype("<i8").tobytes())
        if bool((numbers > 0).any()):
            augment = describe_augmentation(renderer.augment)
            digest.update(f"{augment} {renderer.seed}".encode())
        return digest.hexdigest()

    def batches(
        self,
        order: torch.Tensor,
        views: torch.Tensor,
        batch_size: int,
        num_workers: int = 0,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images in batches.

        A single image left over at the end joins the batch before: batch norm cannot train on
        one.

        Args:
            order: int64, ``(M,)``: positions of the images, in the order wanted; they may repeat.
            views: int64, ``(N,)``: the view of every image, by position, as
                :meth:`views_for_epoch` returns it.
            batch_size: Images in a batch.
            num_workers: Processes that render the views that are not cached yet; the result is
                the same for any number.

        Yields:
            Images, uint8 ``(B, 3, size, size)``, and labels, int64 ``(B,)``.
        """
        if views.shape != self.labels.shape:
            raise ValueError(
                f"views must name one view of each of {len(self)} images, but has the shape "
                f"{tuple(views.shape)}"
            )
        chunks = split_batches(order, batch_size)
        planned = self._is_cached.clone()
        wanted = [self._missing(chunk, views[chunk], planned) for chunk in chunks]
        rendered = self._render(wanted, num_workers)
        for chunk, pairs, images in zip(chunks, wanted, rendered, strict=True):
            if self.cached is None:
                yield images, self.labels[chunk]
                continue
            if pairs:
                positions, numbers = torch.tensor(pairs).T
                self.cached[positions, numbers] = images
                self._is_cached[positions, numbers] = True
            yield self.cached[chunk, views[chunk]], self.labels[chunk]

    def _missing(
        self, positions: torch.Tensor, numbers: torch.Tensor, planned: torch.Tensor
    ) -> Pairs:
        """Return the views of a batch that must be rendered; earlier batches plan theirs."""
        if self.cached is None:
            return list(zip(positions.tolist(), numbers.tolist(), strict=True))
        missing = ~planned[positions, numbers]
        pairs = zip(positions[missing].tolist(), numbers[missing].tolist(), strict=True)
        planned[positions, numbers] = True
        return list(dict.fromkeys(pairs))

    def _render(self, wanted: Sequence[Pairs], num_workers: int) -> Iterator[torch.Tensor]:
        if num_workers == 0 or not any(wanted):
            yield from map(self._renderer.render, wanted)
            return
        yield from DataLoader(
            self._renderer,
            sampler=wanted,
            batch_size=None,  # the sampler's lists are the batches
            num_workers=num_workers,
            generator=torch.Generator(),  # else it draws a seed from the global one
        )


def split_batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut the positions of images into batches; a single one left over joins the batch before."""
    batches = list(torch.split(order, batch_size)) if len(order) else []
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
