"""The precision in which the trials of a study train: chosen once, and stored."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from autotune.data.cache.array_cache import ArrayCache
from autotune.data.cache.entry import EntryWriter
from autotune.errors import InsufficientSpaceError
from autotune.models.layers import list_layers
from autotune.models.network import Network, build_network
from autotune.plan import LayerPlan, TrialPlan
from autotune.storage.rdb.study_lock import study_lock
from autotune.study.state import attrs, oom
from autotune.training.compute.amp import (
    FLOAT32_PRECISION,
    AmpPolicy,
    fastest_precision,
    half_precision_for,
    set_float32_precision,
)
from autotune.training.compute.half_precision_check import (
    Operation,
    is_inaccurate,
    keep_inaccurate_fp32,
    operation_id,
)
from autotune.training.inputs.batches import to_channels_last

if TYPE_CHECKING:
    from autotune.study.setup.resources import BackboneResources
    from autotune.study.trial.context import WorkerContext

logger = logging.getLogger(__name__)
#: Pixels of the batch with which precisions are compared: eight images of 224 x 224, which take a
#: CPU core a second or two; and the smallest batch.
_PIXELS = 8 * 224**2
_MIN_IMAGES = 4


def choose_precision(ctx: WorkerContext, resources: BackboneResources) -> AmpPolicy:
    """Return the precision in which a backbone trains on the device of a worker.

    With ``training.precision: auto`` a GPU takes half precision: bf16 if its hardware has it, else
    fp16. On a CPU the first worker compares the precisions, once for all studies of the machine.
    The study stores the result, so that all trials of a backbone on such devices compute alike.
    What stays in float32 on a GPU is computed in TF32 from here on.
    """
    mode, device = ctx.config.training.precision, ctx.device
    is_gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if is_gpu else device.type
    if is_gpu:
        precision = _stored_or(ctx, attrs.FLOAT32, (kind,), lambda: FLOAT32_PRECISION)
        set_float32_precision(device, precision)
    if mode != "auto":
        return AmpPolicy.from_mode(mode, device)

    def choose() -> str:
        # Steps of a few images on a GPU would measure the launch of kernels, of which autocast
        # adds some: half precision would look slow although it is several times as fast.
        return half_precision_for(device) if is_gpu else _fastest(ctx, resources, kind)

    name = resources.backbone.name
    if len(ctx.config.image_sizes) > 1:  # whichever of them is trained first
        name += f" at {resources.data.spec.size} px"
    mode = _stored_or(ctx, attrs.PRECISION, (name, kind), choose)
    return AmpPolicy.from_mode(mode, device)


def _stored_or(
    ctx: WorkerContext, name: str, keys: tuple[str, ...], choose: Callable[[], str]
) -> str:
    """Return the value below some keys of a study's attribute; choose and store it if missing."""
    study = ctx.handle.study

    def innermost(values: dict[str, Any]) -> dict[str, Any]:
        for key in keys[:-1]:
            values = values.setdefault(key, {})
        return values

    value = innermost(study.user_attrs.get(name, {})).get(keys[-1])
    if value is None:
        chosen = choose()
        with study_lock(ctx.handle.storage, ctx.handle.url, ctx.handle.name):
            stored = study.user_attrs.get(name, {})
            value = innermost(stored).setdefault(keys[-1], chosen)  # or another worker was first
            study.set_user_attr(name, stored)
    return str(value)


def keep_in_float32(
    network: Network, ctx: WorkerContext, resources: BackboneResources, amp: AmpPolicy
) -> AmpPolicy:
    """Keep in float32 what half precision computes wrongly on this machine.

    See :mod:`autotune.training.compute.half_precision_check`. Each convolution and matrix product
    is compared once for all studies of the machine.

    Returns:
        The precision in which the network can train.
    """
    size = resources.data.spec.size

    def is_wrong(operation: Operation) -> bool:
        id_, is_wrong = operation_id(operation), ctx.wrong_in_half
        if id_ not in is_wrong:
            what = "comparisons of precisions"
            wrong = _cached(ctx, f"half/{id_}", "wrong", what, lambda: is_inaccurate(operation))
            is_wrong[id_] = bool(wrong)
        return is_wrong[id_]

    return keep_inaccurate_fp32(network, (3, size, size), amp, is_wrong)


def _fastest(ctx: WorkerContext, resources: BackboneResources, kind: str) -> str:
    """Return the fastest precision on this machine, which is timed once."""
    backbone, size = resources.backbone, resources.data.spec.size
    depth = min(ctx.space.max_depth, len(list_layers(backbone.fresh())))
    count = min(ctx.config.training.batch_size, max(_MIN_IMAGES, _PIXELS // size**2))
    shape = (max(2, count), 3, size, size)
    identity = (socket.gethostname(), kind, torch.__version__, backbone.name, depth, shape)

    def time_precisions() -> str:
        precision = _compare(ctx, resources, depth, shape)
        logger.info("%s trains in precision %s on %s", backbone.name, precision, kind)
        return precision

    key = f"precision/{hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()}"
    return str(_cached(ctx, key, "precision", "timings of precisions", time_precisions))


def _cached(
    ctx: WorkerContext, key: str, name: str, what: str, compute: Callable[[], str | bool]
) -> str | bool:
    """Return a value from the record of a cache entry; compute and cache it if it is missing."""
    cache = ArrayCache(ctx.handle.files.cache, ctx.config.cache.disk_bytes)

    def make(_writer: EntryWriter) -> dict[str, str | bool]:
        return {name: compute()}

    try:
        entry = cache.get_or_create(key, make, 0, what)
    except InsufficientSpaceError:  # the next worker computes it again
        return compute()
    value: str | bool = entry.record[name]
    return value


def _compare(
    ctx: WorkerContext, resources: BackboneResources, depth: int, shape: tuple[int, int, int, int]
) -> str:
    """Time the deepest plan of the study without changes of shape."""
    backbone, device = resources.backbone, ctx.device
    plan = TrialPlan(backbone.name, depth, (LayerPlan(),) * depth)
    network = build_network(backbone, plan, len(resources.data.classes), seed=0)
    network.to(device).to(memory_format=torch.channels_last)

    def compare(count: int) -> str:
        images = torch.randn((count, *shape[1:]), generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return fastest_precision(network, to_channels_last(images.to(device)))

    return oom.with_oom_backoff(compare, shape[0], device)
