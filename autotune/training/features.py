"""Features: what the frozen part of a network makes of its images, computed once for all.

Trials that lock the same layers see the same features, in every epoch that shows the same views.
They are kept on disk, a file for the images of an epoch, and mapped by all workers. The first
trial that wants them computes them; others wait for it.

Where features of another trial's cut were kept does not decide what is computed: every cut is
computed from the *root*, the cut of the deepest plan of the study, or from the images. So the
values are the same whatever was tried before.
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
from autotune.training.inputs.transfer import (
    Layout,
    allocate_resident,
    copy_in_chunks,
    prefetch,
    upload,
)
from autotune.training.trainer import Normalizer

logger = logging.getLogger(__name__)

#: Raised whenever the same features would be computed otherwise.
_FORMAT = 1
#: Images that go through the prefix at a time: always the same, because a convolution rounds
#: differently in another batch. Only where the memory of a GPU gives out there are fewer. The
#: features are those of the whole batch then, to the precision in which they are computed and
#: kept, as they are on another GPU.
_BATCH = 32
#: Memory that a set of images takes on the CPU for features: what heads of small data sets read.
_CPU_BYTES = 32 << 20
#: Bytes of kept features that are taken from an entry at a time, or one batch: they are still in
#: the cache of a CPU when a step comes to them.
_GATHERED_BYTES = 1 << 21

Block = tuple[Tensor, ...]


class _TooLargeError(Exception):
    """A feature is beyond what half precision can hold."""


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """Where the features of a backbone are kept, and how they are computed.

    Args:
        array_cache: Where they lie.
        weights_hash: Fingerprint of the backbone's weights.
        normalize: Brings images to what the backbone expects.
        amp: Mixed precision of the training.
        root: The cut from which all others are computed; ``None`` takes the images.
        loader_workers: Processes that prepare images which do not fit into memory.
        on_device: Whether the features of an epoch may lie in the memory of a GPU.
    """

    array_cache: ArrayCache
    weights_hash: str
    normalize: Normalizer
    amp: AmpPolicy
    root: PrefixSplit | None
    loader_workers: int = 0
    on_device: bool = True

    def open(self, split: PrefixSplit, views: Views, positions: Tensor, numbers: Tensor) -> Entry:
        """Open the features of some views, and compute them first if nobody has.

        Args:
            split: The network that is cut.
            views: The images.
            positions: int64, ``(M,)``: which of them, rising.
            numbers: int64, ``(M,)``: which view of each.

        Returns:
            An array for each crossing tensor, ``(M, *shape)``, named ``0``, ``1`` and so on.

        Raises:
            DiskFullError: When there is no room for them.
        """
        images = views.fingerprint(positions, numbers)
        home = f"features/{_digest(_FORMAT, self.weights_hash, images, *self._way())}"
        half, single = (f"{home}/{_digest(*split.keys)}{tail}" for tail in ("", "-float32"))
        for key in (half, single):
            kept = self.array_cache.get(key)
            if kept is not None:
                return kept
        try:
            return self._open(half, split, views, positions, numbers, torch.float16)
        except _TooLargeError:
            return self._open(single, split, views, positions, numbers, torch.float32)

    def _way(self) -> tuple[str, ...]:
        """Say by what features of the same network may differ."""
        root = self.root.keys if self.root is not None else ()
        return *describe_compute(self.amp), *root

    def _open(
        self,
        key: str,
        split: PrefixSplit,
        views: Views,
        positions: Tensor,
        numbers: Tensor,
        dtype: torch.dtype,
    ) -> Entry:
        dtypes = [stored_dtype(one, dtype) for one in split.dtypes]
        row = sum(
            one.itemsize * prod(shape) for one, shape in zip(dtypes, split.shapes, strict=True)
        )

        def make(writer: EntryWriter) -> dict[str, str]:
            rows = [
                writer.array(str(index), _numpy(one), shape)
                for index, (one, shape) in enumerate(zip(dtypes, split.shapes, strict=True))
            ]
            for block in self._computed(split, views, positions, numbers):
                for array, tensor, one in zip(rows, block, dtypes, strict=True):
                    array.append(to_stored_dtype(tensor, one).cpu().numpy())
            return {"weights": self.weights_hash}

        what = f"features of {len(positions)} images"
        return self.array_cache.get_or_create(key, make, row * len(positions), what)

    def _computed(
        self, split: PrefixSplit, views: Views, positions: Tensor, numbers: Tensor
    ) -> Iterator[Block]:
        """Compute the features of views, block by block."""
        root = self.root
        if root is not None and root.keys != split.keys:
            onward = split.prefix(root.keys)
            if onward is not None:
                entry = self.open(root, views, positions, numbers)
                wanted = [root.keys.index(key) for key in onward.needs]
                arrays = [entry.array(str(index)) for index in wanted]
                rows = torch.split(torch.arange(len(positions)), _BATCH)
                yield from self._mapped(onward, self.rows(arrays, rows))
                return
        first = split.prefix()
        assert first is not None, "the images suffice"
        by_position = torch.zeros_like(views.labels)
        by_position[positions] = numbers
        batches = views.batches(positions, by_position, _BATCH, self.loader_workers)
        yield from self._mapped(first, ((images,) for images, _ in batches))

    def _mapped(self, prefix: Prefix, blocks: Iterable[Block]) -> Iterator[Block]:
        """Send blocks through a prefix, on the CPU one in each thread.

        One thread a block, and not all of them for each: convolutions of small images do not
        share well, and what is computed does not depend on how many threads there are.
        """

        def work(block: Inputs) -> Block:
            with self.amp.autocast():
                return prefix(*map(self.prepare, block))

        if self.amp.device.type != "cpu":
            halving = MicroBatcher("features", self.amp.device)
            for block in blocks:
                yield from halving.run(work, block)
            return
        with (
            single_threaded(),
            ThreadPoolExecutor(available_cpus(), initializer=_be_one_thread) as pool,
        ):
            yield from _ahead(pool, work, blocks)

    def rows(self, arrays: Sequence[np.ndarray], wanted: Sequence[Tensor]) -> Iterator[Block]:
        """Read rows of kept features, for a GPU ahead of their use.

        Args:
            arrays: What is kept of each crossing tensor.
            wanted: int64, ``(B,)`` each: which rows, batch by batch.

        Yields:
            The rows, each ``(B, *shape)``; on a GPU where that computes.
        """

        def gather(rows: Tensor, out: Sequence[Tensor]) -> None:
            for one, target in zip(arrays, out, strict=True):
                # Without "clip" numpy would write to a buffer first; all rows are there.
                np.take(one, rows.numpy(), axis=0, out=target.numpy(), mode="clip")

        if self.amp.device.type == "cuda":
            yield from prefetch(wanted, _layouts(arrays), gather, self.amp.device)
            return
        for rows in wanted:
            yield tuple(torch.from_numpy(one[rows.numpy()]) for one in arrays)

    def prepare(self, tensor: Tensor) -> Tensor:
        """Bring images or kept features to the device as the network takes them."""
        moved = upload(tensor, self.amp.device)
        if tensor.dtype == torch.uint8:
            return self.normalize(moved)
        moved = to_channels_last(moved)
        return moved.float() if moved.is_floating_point() else moved


class Features:
    """The features of a set of images: what :class:`Views` is of the images themselves.

    Args:
        cache: Where they are kept.
        split: The network that is cut.
        views: The images.
        online: Whether features are computed whenever they are asked for, and not kept.
        together: Whether those of all images are computed with the first that are asked for.

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
        self._halving = MicroBatcher("features", cache.amp.device)
        self._resident: dict[bytes, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def views_for_epoch(self, epoch: int | None) -> Tensor:
        """Choose a view of each image for an epoch, see :meth:`Views.views_for_epoch`."""
        return self._views.views_for_epoch(epoch)

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Block, Tensor]]:
        """Go through images in batches, see :meth:`Views.batches`.

        Yields:
            The crossing tensors, each ``(B, *shape)``, and labels, int64 ``(B,)``.
        """
        if not self._online:
            # A whole epoch is an entry of all images, whichever of them it draws: so it is the
            # same entry in every epoch that shows the same views.
            whole = self._together or len(order) >= len(self)
            positions = torch.arange(len(self)) if whole else torch.unique(order)
            try:
                arrays = self._open(positions, views[positions], whole)
            except DiskFullError as error:
                logger.warning("features are computed anew in every epoch: %s", error)
                self._online = True
            else:
                parts = split_batches(order, batch_size)
                rows = [torch.searchsorted(positions, part) for part in parts]
                features = self._batches(arrays, rows)
                yield from zip(features, self._labels_of(order, parts), strict=True)
                return
        prefix = self._split.prefix()
        assert prefix is not None, "the images suffice"

        def work(images: Inputs) -> Block:
            assert isinstance(images, Tensor), "nothing was computed of them before"
            return prefix(self._cache.prepare(images))

        for images, labels in self._views.batches(order, views, batch_size, num_workers):
            with self._cache.amp.autocast():
                block = _joined(self._halving.run(work, images))
            # Outside of the context: it would last until the next batch, over a whole step.
            yield block, self._there(labels)

    def _open(
        self, positions: Tensor, numbers: Tensor, whole: bool
    ) -> Sequence[Tensor] | Sequence[np.ndarray]:
        """Return the features of some views: where they stay, or as they lie on disk."""
        which = positions.numpy().tobytes() + numbers.numpy().tobytes()
        if which in self._resident:
            return self._resident[which]
        entry = self._cache.open(self._split, self._views, positions, numbers)
        arrays = [entry.array(str(index)) for index in range(len(self._split.keys))]
        kept = self._keep(arrays) if whole else None  # others are asked for once
        if kept is None:
            return arrays
        self._resident[which] = kept
        return kept

    def _keep(self, arrays: Sequence[np.ndarray]) -> list[Tensor] | None:
        """Keep an epoch on the device while there is room; the CPU keeps small ones.

        What is kept stays. Epochs show the views in turn, so that giving one up for the next
        would give up each before it comes again.
        """
        device = self._cache.amp.device
        if device.type == "cuda":
            if not self._cache.on_device:
                return None
            kept = allocate_resident(_layouts(arrays), len(arrays[0]), device)
            for array, target in zip(arrays, kept or (), strict=kept is not None):
                copy_in_chunks(array, target)
            return kept
        size = sum(one.nbytes for one in arrays)
        held = sum(one.nbytes for some in self._resident.values() for one in some)
        if held + size > _CPU_BYTES:
            return None
        # Small ones: without the way from half precision in every epoch.
        return [self._cache.prepare(torch.from_numpy(one.copy())) for one in arrays]

    def _batches(
        self, arrays: Sequence[Tensor] | Sequence[np.ndarray], wanted: list[Tensor]
    ) -> Iterator[Block]:
        """Take batches of rows.

        Of what lies at hand, several small batches at a time: taking has a price of its own.
        """
        if not wanted:
            return
        of_batch = bytes_per_image(self._split) * len(wanted[0])
        at_once = max(1, _GATHERED_BYTES // max(1, of_batch))
        groups = [wanted[start : start + at_once] for start in range(0, len(wanted), at_once)]
        sizes = [[len(one) for one in some] for some in groups]
        joined = [torch.cat(some) if len(some) > 1 else some[0] for some in groups]
        for block, lengths in zip(self._taken(arrays, joined), sizes, strict=True):
            prepared = [torch.split(self._cache.prepare(one), lengths) for one in block]
            yield from zip(*prepared, strict=True)

    def _taken(
        self, arrays: Sequence[Tensor] | Sequence[np.ndarray], wanted: list[Tensor]
    ) -> Iterator[Block]:
        tensors = [one for one in arrays if isinstance(one, Tensor)]
        if not tensors:
            mapped = [one for one in arrays if isinstance(one, np.ndarray)]
            yield from self._cache.rows(mapped, wanted)
            return
        device = tensors[0].device
        # The numbers of all rows cross at once, before the first step.
        there = torch.split(upload(torch.cat(wanted), device), [len(one) for one in wanted])
        for rows in there:
            yield tuple(one[rows] for one in tensors)

    def _labels_of(self, order: Tensor, parts: list[Tensor]) -> Sequence[Tensor]:
        return torch.split(self._there(self.labels[order]), [len(one) for one in parts])

    def _there(self, labels: Tensor) -> Tensor:
        return upload(labels, self._cache.amp.device)


def _layouts(arrays: Sequence[np.ndarray]) -> list[Layout]:
    """Say what a row of each array is."""
    return [(one.shape[1:], torch.from_numpy(one[:0].copy()).dtype) for one in arrays]


def _joined(parts: list[Block]) -> Block:
    """Put the features of the parts of a batch together."""
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(one) for one in zip(*parts, strict=True))


def bytes_per_image(split: PrefixSplit) -> int:
    """Return the bytes that the features of one image take."""
    return sum(
        stored_dtype(dtype, torch.float16).itemsize * prod(shape)
        for dtype, shape in zip(split.dtypes, split.shapes, strict=True)
    )


def stored_dtype(dtype: torch.dtype, floating: torch.dtype) -> torch.dtype:
    """Return the dtype in which a crossing tensor is kept."""
    return floating if dtype.is_floating_point else dtype


def to_stored_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring a crossing tensor to the dtype in which it is kept.

    Raises:
        _TooLargeError: When a value is finite and does not stay so.
    """
    kept = tensor.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(kept).all() and torch.isfinite(tensor).all():
        raise _TooLargeError
    return kept


def _ahead(
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


def _be_one_thread() -> None:
    torch.set_num_threads(1)


def _numpy(dtype: torch.dtype) -> np.dtype[np.generic]:
    return np.dtype(torch.empty((), dtype=dtype).numpy().dtype)


def _digest(*parts: object) -> str:
    text = "\0".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
