"""Where the images of a training are: in the memory of its GPU, or on the way to it.

A batch of an unsplit network is selected from views that stay on the GPU. If they do not fit, a
thread gathers them ahead. Neither makes the host wait in a step.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autotune.data.views.views import Views, split_batches
from autotune.training.inputs.batches import Batches, SubsetBatches
from autotune.training.inputs.transfer import allocate_resident, prefetch, upload


@dataclass(frozen=True, eq=False)
class _Copy:
    """The views of a set of images on a GPU.

    Args:
        views: uint8, ``(N * views, 3, size, size)``.
        is_copied: bool, ``(N, views)``, in the memory of the host: the views copied so far.
    """

    views: Tensor
    is_copied: Tensor


#: One copy serves all trials of a study, and all folds. It goes when its views do.
_copies: weakref.WeakKeyDictionary[Views, _Copy] = weakref.WeakKeyDictionary()


def place_on_device(batches: Batches, device: torch.device, stays: bool = True) -> Batches:
    """Have the batches of a set of images arrive on the device that trains.

    Args:
        batches: The images. What is not made of views is returned as it is.
        device: The device that trains; for the CPU the images are returned as they are.
        stays: Whether they may stay in the memory of the GPU.
    """
    if device.type != "cuda":
        return batches
    if isinstance(batches, SubsetBatches):
        return SubsetBatches(place_on_device(batches.whole, device, stays), batches.positions)
    return DeviceViews(batches, device, stays) if isinstance(batches, Views) else batches


def release_copy(batches: Batches) -> None:
    """Free the memory of a GPU that images take, after a training has run out of it."""
    if isinstance(batches, SubsetBatches):
        release_copy(batches.whole)
    elif isinstance(batches, DeviceViews):
        release_copy(batches.views)
    elif isinstance(batches, Views):
        _copies.pop(batches, None)


class DeviceViews:
    """Views whose batches arrive on a GPU, with the interface of :class:`Views`.

    If there is room, all views that the host caches stay on the GPU. Each is copied with the first
    batch that shows it. Views are made in the thread of the caller, or by loader processes: they
    use torch's generator, which belongs to the steps as well.
    """

    def __init__(self, views: Views, device: torch.device, stays: bool = True) -> None:
        self.labels = views.labels
        self.views = views
        self._device = device
        self._stays = stays and views.cached is not None

    def __len__(self) -> int:
        return len(self.labels)

    def views_for_epoch(self, epoch: int | None) -> Tensor:
        """Choose a view of each image for an epoch, see :meth:`Views.views_for_epoch`."""
        return self.views.views_for_epoch(epoch)

    def batches(
        self, order: Tensor, views: Tensor, batch_size: int, num_workers: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over batches, see :meth:`Views.batches`."""
        parts = split_batches(order, batch_size)
        if not parts:
            return
        numbers = [views[part] for part in parts]
        rows = [part * self.views.views + view for part, view in zip(parts, numbers, strict=True)]
        labels = self._send([self.labels[part] for part in parts])
        wanted = views[order]
        copy = self._get_copy(create=len(parts) > 1)
        if copy is not None and bool(copy.is_copied[order, wanted].all()):
            for row, goals in zip(self._send(rows), labels, strict=True):
                yield copy.views.index_select(0, row), goals
        elif copy is None and len(parts) > 1 and self.views.are_cached(order, wanted):
            yield from zip(self._prefetch(rows), labels, strict=True)
        else:
            made = self.views.batches(order, views, batch_size, num_workers)
            sent_rows = self._send(rows) if copy is not None else rows
            for part, view, row, (images, _), goals in zip(
                parts, numbers, sent_rows, made, labels, strict=True
            ):
                sent = upload(images, self._device)
                if copy is not None:
                    copy.views.index_copy_(0, row, sent)
                    copy.is_copied[part, view] = True
                yield sent, goals

    def _get_copy(self, create: bool) -> _Copy | None:
        """Return the copy on the device; create it for more than a few images."""
        if not self._stays:
            return None
        copy = _copies.get(self.views)
        if copy is not None and copy.views.device == self._device:
            return copy
        if not create:
            return None
        count = len(self) * self.views.views
        made = allocate_resident([(self.views.shape, torch.uint8)], count, self._device)
        if made is None:
            return None
        is_copied = torch.zeros((len(self), self.views.views), dtype=torch.bool)
        _copies[self.views] = _Copy(made[0], is_copied)
        return _copies[self.views]

    def _prefetch(self, rows: list[Tensor]) -> Iterator[Tensor]:
        assert self.views.cached is not None, "all of them are cached"
        cached = self.views.cached.flatten(0, 1)

        def gather(row: Tensor, out: Sequence[Tensor]) -> None:
            torch.index_select(cached, 0, row, out=out[0])

        layout = (self.views.shape, torch.uint8)
        for (images,) in prefetch(rows, [layout], gather, self._device):
            yield images

    def _send(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """Send the tensors of all batches at once, before the first step."""
        return torch.split(upload(torch.cat(tensors), self._device), [len(t) for t in tensors])
