"""The views of a set of images, in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from autotune.config.schema import AugmentConfig
from autotune.data.cache.decoded_images import ImageStore
from autotune.data.preprocessing import ImageSpec
from autotune.data.views.augmentation import ViewRenderer, mix_seed

Pairs = list[tuple[int, int]]
#: Most memory that the views of one set of images take where nobody says.
MEMORY_BYTES = 1 << 29


class Views:
    """Images with a fixed number of deterministic augmentations each.

    View 0 is the evaluation transform. The others depend on the seed, the image and the number
    of the view alone, so features that are computed from them can be kept and shared. When all
    of them fit into ``memory_limit_bytes``, each is made once and kept.

    Args:
        store: Decoded images.
        rows: int64, ``(N,)``: the rows of the store that are meant.
        spec: What the backbone wants.
        augment: What differs between views.
        views: Number of views of each image, at least 1.
        seed: Seed of the views and of the order in which they are planned.
        memory_limit_bytes: Most memory that kept views may take.

    Attributes:
        labels: int64 tensor, ``(N,)``.
        views: Number of views of each image.
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
        self._maker = ViewRenderer(store, rows, spec, augment, seed)
        self._shape = (3, spec.size, spec.size)
        shape = (len(rows), views, *self._shape)
        self._kept: torch.Tensor | None = None
        if int(np.prod(shape)) <= memory_limit_bytes:
            self._kept = torch.empty(shape, dtype=torch.uint8)  # pages are taken when written
        self._filled = torch.zeros(shape[:2], dtype=torch.bool)
        offsets = torch.Generator().manual_seed(mix_seed(seed))
        self._offsets = torch.randperm(len(rows), generator=offsets)

    @property
    def cache_bytes(self) -> int:
        """Memory that the kept views take once all are made; 0 when none are kept."""
        return 0 if self._kept is None else self._kept.nbytes

    @property
    def cached(self) -> torch.Tensor | None:
        """The views that are kept, uint8 ``(N, views, 3, size, size)``, each once it was made."""
        return self._kept

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one view: ``(3, size, size)``."""
        return self._shape

    def are_cached(self, positions: torch.Tensor, numbers: torch.Tensor) -> bool:
        """Tell whether some views are kept and have been made.

        Args:
            positions: int64, ``(M,)``: positions of the images.
            numbers: int64, ``(M,)``: number of the view of each.
        """
        return self._kept is not None and bool(self._filled[positions, numbers].all())

    def __len__(self) -> int:
        return len(self.labels)

    def view(self, i: int, v: int) -> torch.Tensor:
        """Return one view of one image.

        Args:
            i: Position of the image, from 0.
            v: Number of the view; 0 is the evaluation transform.

        Returns:
            uint8, ``(3, size, size)``.

        Raises:
            IndexError: When there is no such image or view.
        """
        if not (0 <= i < len(self) and 0 <= v < self.views):
            raise IndexError(
                f"image and view must be below {len(self)} and {self.views}, but got {i} and {v}"
            )
        if self._kept is not None and self._filled[i, v]:
            return self._kept[i, v].clone()
        return self._maker.render([(i, v)])[0]

    def views_for_epoch(self, epoch: int | None) -> torch.Tensor:
        """Choose a view of each image for an epoch.

        Every image goes through its views in turn, from a place of its own, so that in every
        epoch all views are used evenly.

        Args:
            epoch: The epoch, from 0; ``None`` for view 0 of all, as they are evaluated.

        Returns:
            int64, ``(N,)``.
        """
        if epoch is None:
            return torch.zeros_like(self.labels)
        return (self._offsets + epoch) % self.views

    def fingerprint(self, positions: torch.Tensor, numbers: torch.Tensor) -> str:
        """Return a fingerprint of what some views show: equal ones show the same.

        Args:
            positions: int64, ``(M,)``: positions of the images.
            numbers: int64, ``(M,)``: number of the view of each.

        Returns:
            32 hexadecimal digits.
        """
        maker = self._maker
        digest = hashlib.blake2b(maker.store.key.encode(), digest_size=16)
        digest.update(maker.rows[positions.numpy()].astype("<i8").tobytes())
        digest.update(numbers.numpy().astype("<i8").tobytes())
        if bool((numbers > 0).any()):
            digest.update(f"{maker.augment!r} {maker.seed}".encode())
        return digest.hexdigest()

    def batches(
        self,
        order: torch.Tensor,
        views: torch.Tensor,
        batch_size: int,
        num_workers: int = 0,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Go through images in batches.

        A single image left over at the end joins the batch before: batch norm cannot train on
        one.

        Args:
            order: int64, ``(M,)``: positions of the images, in the order wanted; one may come
                several times.
            views: int64, ``(N,)``: the view of every image, by position, as
                :meth:`plan_views` returns it.
            batch_size: Images in a batch.
            num_workers: Processes that make the views that are not kept yet; the result is the
                same for any number.

        Yields:
            Images, uint8 ``(B, 3, size, size)``, and labels, int64 ``(B,)``.
        """
        if views.shape != self.labels.shape:
            raise ValueError(
                f"views must name one view of each of {len(self)} images, but has the shape "
                f"{tuple(views.shape)}"
            )
        parts = split_batches(order, batch_size)
        planned = self._filled.clone()
        wanted = [self._missing(chunk, views[chunk], planned) for chunk in parts]
        for chunk, pairs, made in zip(parts, wanted, self._make(wanted, num_workers), strict=True):
            if self._kept is None:
                yield made, self.labels[chunk]
                continue
            if pairs:
                positions, numbers = torch.tensor(pairs).T
                self._kept[positions, numbers] = made
                self._filled[positions, numbers] = True
            yield self._kept[chunk, views[chunk]], self.labels[chunk]

    def _missing(
        self, positions: torch.Tensor, numbers: torch.Tensor, planned: torch.Tensor
    ) -> Pairs:
        """List the views of a batch that are to be made; those of earlier ones are planned."""
        if self._kept is None:
            return list(zip(positions.tolist(), numbers.tolist(), strict=True))
        missing = ~planned[positions, numbers]
        pairs = zip(positions[missing].tolist(), numbers[missing].tolist(), strict=True)
        planned[positions, numbers] = True
        return list(dict.fromkeys(pairs))

    def _make(self, wanted: Sequence[Pairs], num_workers: int) -> Iterator[torch.Tensor]:
        if num_workers == 0 or not any(wanted):
            yield from map(self._maker.render, wanted)
            return
        yield from DataLoader(
            _Made(self._maker),
            sampler=wanted,
            batch_size=None,  # the sampler's lists are the batches
            num_workers=num_workers,
            generator=torch.Generator(),  # else it draws a seed from the global one
        )


class _Made(Dataset[torch.Tensor]):
    """The views as the data loader wants them: indexed by a list of pairs."""

    def __init__(self, maker: ViewRenderer) -> None:
        self.maker = maker

    def __getitem__(self, pairs: Pairs) -> torch.Tensor:
        return self.maker.render(pairs)


def split_batches(order: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
    """Cut the positions of images into batches; a single one left over joins the batch before."""
    chunks = list(torch.split(order, batch_size)) if len(order) else []
    if len(chunks) > 1 and len(chunks[-1]) == 1:
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks
