"""Features: the outputs of the frozen prefix of a network, computed once and shared.

Trials that freeze the same layers see the same features in every epoch that shows the same views.
Features are stored on disk, a file for the images of an epoch, and mapped by all workers. The
first trial that needs them computes them; others wait for it.

The features of a split never depend on what was tried before: each split is computed from the
*root*, the split of the deepest plan of the study, or from the images, whatever the cache holds.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import Entry, EntryWriter
from autotune.data.views.views import Views, split_batches
from autotune.errors import DiskFullError
from autotune.models.prefix.split import Prefix, PrefixSplit
from autotune.runtime import available_cpus, single_threaded
from autotune.training.compute.amp import AmpPolicy, describe_compute
from autotune.training.compute.micro_batches import MicroBatcher
from autotune.training.inputs.batches import Inputs, to_channels_last
from autotune.training.inputs.normalizer import Normalizer
from autotune.training.inputs.transfer import (
    Layout,
    allocate_resident,
    copy_in_chunks,
    prefetch,
    upload,
)

logger = logging.getLogger(__name__)

#: Raised whenever the same features would be computed differently.
_FORMAT = 1
#: Images that go through the prefix at a time: always the same, because a convolution rounds
#: differently in another batch. Only if the memory of a GPU is not enough there are fewer. The
#: features are those of the whole batch then, to the precision in which they are computed and
#: stored, as they are on another GPU.
_BATCH = 32
#: Most CPU memory that a set of images keeps for features: what heads of small data sets read.
_CPU_BYTES = 32 << 20
#: Bytes of stored features gathered at a time, or one batch: they are still in the cache of a CPU
#: when a step uses them. Each gather has a fixed overhead.
_GATHERED_BYTES = 1 << 21

Block = tuple[Tensor, ...]


class _TooLargeError(Exception):
    """A feature is beyond what half precision can hold."""


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Computes and stores the features of a backbone.

    Args:
        array_cache: The cache that stores them.
        weights_hash: Fingerprint of the backbone's weights.
        normalize: Normalizes images for the backbone.
        amp: Mixed precision of the training.
        root: The split from which all others are computed; ``None`` starts from the images.
        loader_workers: Processes that prepare images which do not fit into memory.
        on_device: Whether the features of an epoch may stay in the memory of a GPU.
    """

    array_cache: ArrayCache
    weights_hash: str
    normalize: Normalizer
    amp: AmpPolicy
    root: PrefixSplit | None
    loader_workers: int = 0
    on_device: bool = True

    def open(self, split: PrefixSplit, views: Views, positions: Tensor, numbers: Tensor) -> Entry:
        """Open the features of some views; compute them first if they are not stored yet.

        Args:
            split: The split of the network.
            views: The images.
            positions: int64, ``(M,)``: which of them, rising.
            numbers: int64, ``(M,)``: which view of each.

        Returns:
            An array for each crossing tensor, ``(M, *shape)``, named ``0``, ``1`` and so on.

        Raises:
            DiskFullError: When there is no room for them.
        """
        images = views.fingerprint(positions, numbers)
        root = self.root.keys if self.root is not None else ()
        context = (*describe_compute(self.amp), *root)
        home = f"features/{_digest(_FORMAT, self.weights_hash, images, *context)}"
        half, single = (f"{home}/{_digest(*split.keys)}{tail}" for tail in ("", "-float32"))
        for key in (half, single):
            if (entry := self.array_cache.get(key)) is not None:
                return entry
        try:
            return self._open(half, split, views, positions, numbers, torch.float16)
        except _TooLargeError:
            return self._open(single, split, views, positions, numbers, torch.float32)

    def _open(
        self,
        key: str,
        split: PrefixSplit,
        views: Views,
        positions: Tensor,
        numbers: Tensor,
        dtype: torch.dtype,
    ) -> Entry:
        dtypes = [_stored_dtype(crossing, dtype) for crossing in split.dtypes]
        row_bytes = sum(d.itemsize * prod(s) for d, s in zip(dtypes, split.shapes, strict=True))

        def make(writer: EntryWriter) -> dict[str, str]:
            arrays = [
                writer.array(str(index), torch.empty((), dtype=stored).numpy().dtype, shape)
                for index, (stored, shape) in enumerate(zip(dtypes, split.shapes, strict=True))
            ]
            for block in self._computed(split, views, positions, numbers):
                for array, tensor, stored in zip(arrays, block, dtypes, strict=True):
                    array.append(_to_stored(tensor, stored).cpu().numpy())
            return {"weights": self.weights_hash}

        what = f"features of {len(positions)} images"
        return self.array_cache.get_or_create(key, make, row_bytes * len(positions), what)

    def _computed(
        self, split: PrefixSplit, views: Views, positions: Tensor, numbers: Tensor
    ) -> Iterator[Block]:
        """Compute the features of views, block by block."""
        root = self.root
        if root is not None and root.keys != split.keys:
            onward = split.prefix(root.keys)
            if onward is not None:
                entry = self.open(root, views, positions, numbers)
                arrays = [entry.array(str(root.keys.index(key))) for key in onward.needs]
                rows = torch.split(torch.arange(len(positions)), _BATCH)
                yield from self._mapped(onward, self.rows(arrays, rows))
                return
        by_position = torch.zeros_like(views.labels)
        by_position[positions] = numbers
        batches = views.batches(positions, by_position, _BATCH, self.loader_workers)
        yield from self._mapped(_image_prefix(split), ((images,) for images, _ in batches))

    def _mapped(self, prefix: Prefix, blocks: Iterable[Block]) -> Iterator[Block]:
        """Send blocks through a prefix, on the CPU one in each thread.

        One thread a block, not all threads for each: convolutions of small images do not share
        well, and the result does not depend on the number of threads.
        """

        def work(block: Inputs) -> Block:
            with self.amp.autocast():
                return prefix(*map(self.prepare, block))

        if self.amp.device.type != "cpu":
            batcher = MicroBatcher("features", self.amp.device)
            for block in blocks:
                yield from batcher.run(work, block)
            return
        pool = ThreadPoolExecutor(available_cpus(), "features", torch.set_num_threads, (1,))
        with single_threaded(), pool:
            yield from _prefetched_map(pool, work, blocks)

    def rows(self, arrays: Sequence[np.ndarray], wanted: Sequence[Tensor]) -> Iterator[Block]:
        """Read rows of stored features, for a GPU ahead of their use."""

        def gather(rows: Tensor, out: Sequence[Tensor]) -> None:
            for array, target in zip(arrays, out, strict=True):
                # Without "clip" numpy would write to a buffer first; all rows are valid.
                np.take(array, rows.numpy(), axis=0, out=target.numpy(), mode="clip")

        if self.amp.device.type == "cuda":
            yield from prefetch(wanted, _layouts(arrays), gather, self.amp.device)
            return
        for rows in wanted:
            yield tuple(torch.from_numpy(array[rows.numpy()]) for array in arrays)

    def prepare(self, tensor: Tensor) -> Tensor:
        """Bring images or stored features to the device, in the form that the network takes."""
        moved = upload(tensor, self.amp.device)
        if tensor.dtype == torch.uint8:
            return self.normalize(moved)
        moved = to_channels_last(moved)
        return moved.float() if moved.is_floating_point() else moved


class Features:
    """The features of a set of images, with the interface of :class:`Views`.

    Args:
        cache: Computes and stores them.
        split: The split of the network.
        views: The images.
        online: Whether features are computed whenever they are used, and not stored.
        together: Whether those of all images are computed with the first ones.

    Attributes:
        labels: int64 tensor, ``(N,)``.
    """

    def __init__(
        self,
        cache: FeatureCache,
        split: PrefixSplit,
        views: Views,
        online: bool = False,
        together: bool = False,
    ) -> None:
        self.labels = views.labels
        self._cache = cache
        self._split = split
        self._views = views
        self._online = online
        self._together = together
        self._batcher = MicroBatcher("features", cache.amp.device)
        self._resident: dict[bytes, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def views_for_epoch(self, epoch: int | None) -> Tensor:
        """Choose a view of each image for an epoch, see :meth:`Views.views_for_epoch`."""
        return self._views.views_for_epoch(epoch)

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Block, Tensor]]:
        """Iterate over batches, see :meth:`Views.batches`."""
        device = self._cache.amp.device
        if not self._online:
            # A whole epoch is an entry of all images, whichever of them it draws: so it is the
            # same entry in every epoch that shows the same views.
            is_whole = self._together or len(order) >= len(self)
            positions = torch.arange(len(self)) if is_whole else torch.unique(order)
            try:
                arrays = self._open(positions, views[positions], is_whole)
            except DiskFullError as error:
                logger.warning("features are computed again in every epoch: %s", error)
                self._online = True
            else:
                batches = split_batches(order, batch_size)
                rows = [torch.searchsorted(positions, batch) for batch in batches]
                labels = torch.split(
                    upload(self.labels[order], device), [len(batch) for batch in batches]
                )
                yield from zip(self._batches(arrays, rows), labels, strict=True)
                return
        prefix = _image_prefix(self._split)

        def work(images: Inputs) -> Block:
            assert isinstance(images, Tensor)
            return prefix(self._cache.prepare(images))

        for images, goals in self._views.batches(order, views, batch_size, num_workers):
            with self._cache.amp.autocast():
                parts = self._batcher.run(work, images)
                block = parts[0]
                if len(parts) > 1:
                    block = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
            # Outside of the context: it would last until the next batch, over a whole step.
            yield block, upload(goals, device)

    def _open(
        self, positions: Tensor, numbers: Tensor, is_whole: bool
    ) -> Sequence[Tensor] | Sequence[np.ndarray]:
        """Return the features of some views: resident tensors, or the arrays on disk."""
        key = positions.numpy().tobytes() + numbers.numpy().tobytes()
        if key in self._resident:
            return self._resident[key]
        entry = self._cache.open(self._split, self._views, positions, numbers)
        arrays = [entry.array(str(index)) for index in range(len(self._split.keys))]
        resident = self._keep(arrays) if is_whole else None  # others are used once
        if resident is not None:
            self._resident[key] = resident
        return arrays if resident is None else resident

    def _keep(self, arrays: Sequence[np.ndarray]) -> list[Tensor] | None:
        """Keep an epoch on the device while there is room; on the CPU if it is small.

        What is kept stays. Epochs show the views in turn, so to drop one for the next would drop
        each before it comes again.
        """
        device = self._cache.amp.device
        if device.type == "cuda":
            if not self._cache.on_device:
                return None
            kept = allocate_resident(_layouts(arrays), len(arrays[0]), device)
            for array, target in zip(arrays, kept or (), strict=kept is not None):
                copy_in_chunks(array, target)
            return kept
        size = sum(array.nbytes for array in arrays)
        held = sum(tensor.nbytes for tensors in self._resident.values() for tensor in tensors)
        if held + size > _CPU_BYTES:
            return None
        # Converted once, not from half precision in every epoch.
        return [self._cache.prepare(torch.from_numpy(array.copy())) for array in arrays]

    def _batches(
        self, arrays: Sequence[Tensor] | Sequence[np.ndarray], wanted: list[Tensor]
    ) -> Iterator[Block]:
        """Gather batches of rows, several small batches at a time."""
        if not wanted:
            return
        batch_bytes = bytes_per_image(self._split) * len(wanted[0])
        count = max(1, _GATHERED_BYTES // max(1, batch_bytes))
        groups = [wanted[start : start + count] for start in range(0, len(wanted), count)]
        joined = [torch.cat(group) if len(group) > 1 else group[0] for group in groups]
        for block, group in zip(self._gather(arrays, joined), groups, strict=True):
            lengths = [len(rows) for rows in group]
            prepared = [torch.split(self._cache.prepare(tensor), lengths) for tensor in block]
            yield from zip(*prepared, strict=True)

    def _gather(
        self, arrays: Sequence[Tensor] | Sequence[np.ndarray], wanted: list[Tensor]
    ) -> Iterator[Block]:
        tensors = [array for array in arrays if isinstance(array, Tensor)]
        if not tensors:
            mapped = [array for array in arrays if isinstance(array, np.ndarray)]
            yield from self._cache.rows(mapped, wanted)
            return
        # The numbers of all rows cross at once, before the first step.
        numbers = upload(torch.cat(wanted), tensors[0].device)
        for rows in torch.split(numbers, [len(batch) for batch in wanted]):
            yield tuple(tensor[rows] for tensor in tensors)


def _image_prefix(split: PrefixSplit) -> Prefix:
    """Return the prefix that starts from the images."""
    prefix = split.prefix()
    assert prefix is not None, "the images suffice"
    return prefix


def bytes_per_image(split: PrefixSplit) -> int:
    """Return the bytes that the stored features of one image take."""
    return sum(
        _stored_dtype(dtype, torch.float16).itemsize * prod(shape)
        for dtype, shape in zip(split.dtypes, split.shapes, strict=True)
    )


def _layouts(arrays: Sequence[np.ndarray]) -> list[Layout]:
    return [(array.shape[1:], torch.from_numpy(array[:0].copy()).dtype) for array in arrays]


def _stored_dtype(dtype: torch.dtype, floating: torch.dtype) -> torch.dtype:
    return floating if dtype.is_floating_point else dtype


def _to_stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a crossing tensor to the dtype in which it is stored."""
    stored = tensor.to(dtype)
    if dtype == torch.float16 and not stored.isfinite().all() and tensor.isfinite().all():
        raise _TooLargeError
    return stored


def _prefetched_map(
    pool: ThreadPoolExecutor, work: Callable[[Block], Block], blocks: Iterable[Block]
) -> Iterator[Block]:
    """Map in threads, a few blocks ahead, in order."""
    waiting: deque[Future[Block]] = deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(work, block))
            if len(waiting) > 2 * available_cpus():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _digest(*parts: object) -> str:
    text = "\0".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
