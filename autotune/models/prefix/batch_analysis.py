"""What the nodes of a network's graph give: which of them are frozen, and what is per image.

The graph runs on two batches of random images, two and three of them, of which the last two of
the three are the two. What has the same shape and values in both is a constant; a number in the
ratio of the batches counts images; a tensor with one dimension in that ratio holds one part for
each image, and where they lie in it is found by comparing the parts of the same images. What is
none of these belongs to no image alone.

The same run tells which operations write into their arguments, by the version counters of the
tensors. What is read after such a write then depends on it in the graph too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves

from autotune.models.prefix.graph import digest, execute_node, reads_trainable_state

#: Images in the two batches.
FEW, MANY = 2, 3
#: Largest relative difference of what one image gives in both: rounding, which deep networks
#: amplify. Other images differ by about 1.
_ROUNDING = 0.05


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that is the same for all images.

    Args:
        value: The value.
    """

    value: Any


@dataclass(frozen=True, eq=False)
class BatchMultiple:
    """A number that is a multiple of the number of images.

    Args:
        each: How many for each image.
    """

    each: int


@dataclass(frozen=True, eq=False)
class Nested:
    """A tuple or list of values, not all of them constant.

    Args:
        type: Its type.
        items: The kinds of its values.
    """

    type: type
    items: tuple[Kind, ...]


@dataclass(frozen=True)
class PerImage:
    """A tensor with one part for each image.

    Args:
        shape: Of one part.
        dtype: Of the tensor.
        dim: The dimension that holds the images.
        before: How often all images are repeated in it.
        each: How many of its entries belong to one image.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    dim: int = 0
    before: int = 1
    each: int = 1

    @property
    def plain(self) -> bool:
        """Whether the tensor itself is ``(N, *shape)``."""
        return (self.dim, self.each) == (0, 1)

    @property
    def bytes(self) -> int:
        """Of one part."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


@dataclass(frozen=True)
class Unknown:
    """Anything else."""


Kind = Constant | BatchMultiple | Nested | PerImage | Unknown


@dataclass(frozen=True, eq=False)
class GraphAnalysis:
    """A graph in which what is written depends on its writer, and what its nodes give.

    Args:
        root: The module that it belongs to.
        graph: The graph.
        digests: Digest of each node.
        frozen: The nodes that depend on the images and on frozen state alone.
        rewritten: The nodes whose memory is written to by a later one.
        effects: The nodes that are not frozen and write to buffers.
        kinds: What the frozen nodes give, by digest.
    """

    root: nn.Module
    graph: fx.Graph
    digests: Mapping[Node, str]
    frozen: frozenset[Node]
    rewritten: frozenset[Node]
    effects: tuple[Node, ...]
    kinds: Mapping[str, Kind]


def after(value: Any, _write: Any) -> Any:
    """Return a value as it is after another node has written to it."""
    return value


def analyze(
    root: nn.Module,
    graph: fx.Graph,
    trainable: frozenset[str],
    shape: tuple[int, ...],
    like: Tensor,
    known: Mapping[str, Kind] | None = None,
) -> GraphAnalysis:
    """Run a graph node by node and note what it gives.

    Args:
        root: The module that it belongs to, in the mode of the graph.
        graph: The graph.
        trainable: Names of the parameters and buffers that training changes.
        shape: Of one image.
        like: A tensor of the type and on the device of the images.
        known: What frozen nodes give, where another graph of the network has told; nodes that it
            does not have are not frozen then.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(MANY, *shape, generator=generator).to(like)
    few = images[MANY - FEW :].clone()
    batches = [few, images] if known is None else [few]
    values: list[dict[Node, Any]] = [{} for _ in batches]
    new = fx.Graph()
    now: dict[Node, Node] = {}
    digests: dict[Node, str] = {}
    kinds: dict[str, Kind] = {}
    frozen: set[Node] = set()
    rewritten: set[Node] = set()
    effects: list[Node] = []
    buffers = set[int]().union(*map(_addresses, root.buffers()))
    memory: dict[Node, set[int]] = {}
    ends = _last_uses(graph)

    def add(copied: Node, free: bool) -> None:
        """Take a node up, once its values are known."""
        digests[copied] = key = digest(copied, root, digests, shape)
        inputs = copied.all_input_nodes
        if not free or not all(one in frozen for one in inputs):
            return
        if known is None or key in known:
            frozen.add(copied)

    for node in graph.nodes:
        copied = now[node] = new.node_copy(node, now.__getitem__)
        if node.op == "output":
            digests[copied] = ""
            continue
        add(copied, not reads_trainable_state(node, root, trainable))
        written: set[int] = set()
        for place, found in enumerate(values):
            if place and copied not in frozen:
                continue
            if node.op == "placeholder":
                found[node] = batches[place]
                continue
            args, kwargs = _arguments(node, found)
            operands = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            versions = [one._version for one in operands]
            found[node] = execute_node(node, root, args, kwargs)
            written |= {
                _address(one)
                for one, version in zip(operands, versions, strict=True)
                if one._version != version
            }
        if known is None and copied in frozen:
            own = node.op == "get_attr"
            kind = Constant(values[0][node]) if own else classify(*(one[node] for one in values))
            kinds.setdefault(digests[copied], kind)
        if written & buffers and copied not in frozen:
            effects.append(copied)
        if written:
            rewritten |= {one for one, places in memory.items() if places & written}
            for earlier in [one for one in values[0] if one is not node]:
                if _addresses(values[0][earlier]) & written:
                    renewed = new.call_function(after, (now[earlier], copied))
                    now[earlier] = renewed
                    add(renewed, True)
                    memory[renewed] = _addresses(values[0][earlier])
                    if known is None and renewed in frozen:
                        kind = classify(*(one[earlier] for one in values))
                        kinds.setdefault(digests[renewed], kind)
        memory[copied] = _addresses(values[0][node])
        for gone in ends.get(node, ()):
            for found in values:
                found.pop(gone, None)
    return GraphAnalysis(
        root,
        new,
        digests,
        frozenset(frozen),
        frozenset(rewritten),
        tuple(effects),
        kinds if known is None else known,
    )


def for_other_mode(root: nn.Module, flow: GraphAnalysis, shape: tuple[int, ...]) -> GraphAnalysis:
    """Return a graph as that of another mode that has the same nodes.

    Args:
        root: The module in the other mode.
        flow: The graph; nodes whose modules do something else in the other mode are not frozen.
        shape: Of one image.
    """
    digests: dict[Node, str] = {}
    for node in flow.graph.nodes:
        digests[node] = digest(node, root, digests, shape)
    frozen = frozenset(node for node in flow.frozen if digests[node] == flow.digests[node])
    return replace(flow, root=root, digests=digests, frozen=frozen)


def _last_uses(graph: fx.Graph) -> dict[Node, list[Node]]:
    """Say for each node which values nobody reads after it."""
    last = {one: node for node in graph.nodes for one in node.all_input_nodes}
    ends: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        ends.setdefault(last.get(node, node), []).append(node)
    return ends


def _arguments(node: Node, values: Mapping[Node, Any]) -> Any:
    def value(one: Any) -> Any:
        return values[one] if isinstance(one, Node) else one

    return map_aggregate((node.args, node.kwargs), value)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _addresses(value: Any) -> set[int]:
    tensors = [one for one in tree_leaves(value) if isinstance(one, Tensor)]
    return {_address(one) for one in tensors} - {0}


def classify(few: Any, many: Any) -> Kind:
    """Say what a node gives, from its values for the two batches as they are now."""
    if isinstance(few, Tensor) and isinstance(many, Tensor):
        return _kind_of_tensor(few, many)
    if isinstance(few, tuple | list) and type(few) is type(many) and len(few) == len(many):
        items = tuple(map(classify, few, many))
        constants = [one.value for one in items if isinstance(one, Constant)]
        if len(constants) == len(items):
            return Constant(type(few)(constants))
        return Nested(type(few), items)
    if type(few) is not type(many):
        return Unknown()
    if few == many:
        return Constant(few)
    if isinstance(few, int) and few * MANY == many * FEW and few % FEW == 0:
        return BatchMultiple(few // FEW)
    return Unknown()


def _kind_of_tensor(few: Tensor, many: Tensor) -> Kind:
    if few.shape == many.shape:
        return Constant(few.clone()) if torch.equal(few, many) else Unknown()
    if few.ndim != many.ndim:
        return Unknown()
    dims = [dim for dim in range(few.ndim) if few.shape[dim] != many.shape[dim]]
    size = few.shape[dims[0]]
    if len(dims) > 1 or size * MANY != many.shape[dims[0]] * FEW or size % FEW:
        return Unknown()
    each = size // FEW
    for before in [one for one in range(1, each + 1) if each % one == 0]:
        parts = [to_parts(one, dims[0], before, each) for one in (few, many)]
        if _alike(parts[0], parts[1][MANY - FEW :]):
            return PerImage(tuple(parts[0].shape[1:]), few.dtype, dims[0], before, each)
    return Unknown()


def _alike(first: Tensor, second: Tensor) -> bool:
    if not first.is_floating_point():
        return torch.equal(first, second)
    if torch.equal(first, second):
        return True
    first, second = first.float(), second.float()
    return float((first - second).norm()) <= _ROUNDING * float(first.norm())


def to_parts(tensor: Tensor, dim: int, before: int, each: int) -> Tensor:
    """Bring the images of a tensor to its front.

    Args:
        tensor: The tensor, ``before * N * each / before`` long in ``dim``.
        dim: See :class:`PerImage`, as the others.
        before: How often all images are repeated in it.
        each: How many of its entries belong to one image.

    Returns:
        The tensor as ``(N, *shape)``; a dimension of ``each`` entries takes the place of ``dim``
        where there are several.
    """
    shape, count = tensor.shape, tensor.shape[dim] // each
    split = tensor.reshape(*shape[:dim], before, count, each // before, *shape[dim + 1 :])
    parts = split.movedim(dim + 1, 0).flatten(dim + 1, dim + 2)
    return parts.squeeze(dim + 1) if each == 1 else parts


def from_parts(parts: Tensor, dim: int, before: int, each: int) -> Tensor:
    """Undo :func:`to_parts`."""
    count, shape = len(parts), parts.shape[1:]
    rest = shape[dim:] if each == 1 else shape[dim + 1 :]
    split = parts.reshape(count, *shape[:dim], before, each // before, *rest)
    return split.movedim(0, dim + 1).reshape(*shape[:dim], count * each, *rest)


def varies_by_image(kind: Kind) -> bool:
    """Say whether a value of this kind differs from image to image."""
    if isinstance(kind, Nested):
        return any(map(varies_by_image, kind.items))
    return isinstance(kind, PerImage | Unknown)
