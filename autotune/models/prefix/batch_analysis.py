"""Find the frozen nodes of a network's graph, and how their values depend on the batch.

The graph runs on batches of two and of three random images; the last two of the three are the
two. A value with the same shape and content in both is a constant; a number in the ratio of the
batches counts images; a tensor with one dimension in that ratio holds one part for each image,
and where they lie in it is found by comparing the parts of the same images. Any other value
depends on several images at once.

The same run finds the operations that write into their arguments, by the version counters of the
tensors. In the new graph, what is read after such a write depends on it.
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
#: Largest relative difference between the parts of one image in both batches: rounding, which
#: deep networks amplify. Other images differ by about 1.
_ROUNDING = 0.05


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that is the same for all images."""

    value: Any


@dataclass(frozen=True, eq=False)
class BatchMultiple:
    """A number that is ``each`` times the number of images."""

    each: int


@dataclass(frozen=True, eq=False)
class Nested:
    """A tuple or list of values, not all of them constant."""

    type: type
    items: tuple[Kind, ...]


@dataclass(frozen=True)
class PerImage:
    """A tensor with one part for each image.

    Args:
        shape: Shape of one part.
        dtype: Type of the tensor.
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
    def layout(self) -> tuple[int, int, int]:
        """``dim``, ``before`` and ``each``, see :func:`to_parts`."""
        return self.dim, self.before, self.each

    @property
    def is_batch_first(self) -> bool:
        """Whether the tensor itself is ``(N, *shape)``."""
        return (self.dim, self.each) == (0, 1)

    @property
    def bytes(self) -> int:
        """Bytes of one part."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


@dataclass(frozen=True)
class Unknown:
    """Any other value."""


Kind = Constant | BatchMultiple | Nested | PerImage | Unknown


@dataclass(frozen=True, eq=False)
class GraphAnalysis:
    """A graph in which what is written depends on its writer, and the kinds of its values.

    Args:
        root: The module that it belongs to.
        graph: The graph.
        digests: Digest of each node.
        frozen: The nodes that depend only on the images and on frozen state.
        rewritten: The nodes whose memory a later one writes to.
        effects: The nodes that are not frozen and write to buffers.
        kinds: Kinds of the frozen nodes' values, by digest.
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
    """Run a graph node by node and classify its values.

    Args:
        root: The module that it belongs to, in the mode of the graph.
        graph: The graph.
        trainable: Names of the parameters and buffers that training changes.
        shape: Shape of one image.
        like: A tensor of the type and on the device of the images.
        known: Kinds from another graph of the network; then only nodes with these digests are
            frozen.
    """
    analyzer = _Analyzer(root, trainable, shape, like, known)
    last_reads = _last_reads(graph)
    for node in graph.nodes:
        analyzer.visit(node)
        for unread in last_reads.get(node, ()):
            for run in analyzer.runs:
                run.pop(unread, None)
    return GraphAnalysis(
        root,
        analyzer.graph,
        analyzer.digests,
        frozenset(analyzer.frozen),
        frozenset(analyzer.rewritten),
        tuple(analyzer.effects),
        analyzer.kinds if known is None else known,
    )


class _Analyzer:
    """Copies a graph while it runs on the batches, see :func:`analyze`."""

    def __init__(
        self,
        root: nn.Module,
        trainable: frozenset[str],
        shape: tuple[int, ...],
        like: Tensor,
        known: Mapping[str, Kind] | None,
    ) -> None:
        self.root, self.trainable, self.shape, self.known = root, trainable, shape, known
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(MANY, *shape, generator=generator).to(like)
        few = images[MANY - FEW :].clone()
        self.batches = [few, images] if known is None else [few]
        #: Values of the nodes for each batch, as long as they are read.
        self.runs: list[dict[Node, Any]] = [{} for _ in self.batches]
        self.graph = fx.Graph()
        self.copies: dict[Node, Node] = {}
        self.digests: dict[Node, str] = {}
        self.kinds: dict[str, Kind] = {}
        self.frozen: set[Node] = set()
        self.rewritten: set[Node] = set()
        self.effects: list[Node] = []
        self.buffers = set[int]().union(*map(_addresses, root.buffers()))
        self.memory: dict[Node, set[int]] = {}

    def visit(self, node: Node) -> None:
        """Copy and run a node."""
        copied = self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
        if node.op == "output":
            self.digests[copied] = ""
            return
        self._add(copied, reads_trainable_state(node, self.root, self.trainable))
        written: set[int] = set()
        for batch, run in zip(self.batches, self.runs, strict=True):
            if run is self.runs[0] or copied in self.frozen:
                written |= self._execute(node, run, batch)
        self._classify(copied, node)
        if written & self.buffers and copied not in self.frozen:
            self.effects.append(copied)
        if written:
            self._renew(node, copied, written)
        self.memory[copied] = _addresses(self.runs[0][node])

    def _add(self, copied: Node, is_trainable: bool) -> None:
        self.digests[copied] = key = digest(copied, self.root, self.digests, self.shape)
        is_frozen = not is_trainable and self.frozen.issuperset(copied.all_input_nodes)
        if is_frozen and (self.known is None or key in self.known):
            self.frozen.add(copied)

    def _execute(self, node: Node, run: dict[Node, Any], batch: Tensor) -> set[int]:
        """Compute the value of a node; return the addresses that it writes to."""
        if node.op == "placeholder":
            run[node] = batch
            return set()
        args, kwargs = _arguments(node, run)
        operands = _tensors((args, kwargs))
        versions = [operand._version for operand in operands]
        run[node] = execute_node(node, self.root, args, kwargs)
        return {
            _address(operand)
            for operand, version in zip(operands, versions, strict=True)
            if operand._version != version
        }

    def _classify(self, copied: Node, node: Node) -> None:
        if self.known is None and copied in self.frozen:
            values = [run[node] for run in self.runs]
            kind = Constant(values[0]) if copied.op == "get_attr" else classify(*values)
            self.kinds.setdefault(self.digests[copied], kind)

    def _renew(self, node: Node, copied: Node, written: set[int]) -> None:
        """Make what is read after a write depend on it."""
        self.rewritten |= {tensor for tensor, places in self.memory.items() if places & written}
        for earlier, value in self.runs[0].items():
            if earlier is not node and _addresses(value) & written:
                renewed = self.graph.call_function(after, (self.copies[earlier], copied))
                self.copies[earlier] = renewed
                self._add(renewed, False)
                self.memory[renewed] = _addresses(value)
                self._classify(renewed, earlier)


def for_other_mode(
    root: nn.Module, analysis: GraphAnalysis, shape: tuple[int, ...]
) -> GraphAnalysis:
    """Return the analysis of another mode whose graph has the same nodes.

    Nodes whose modules do something else in the other mode are not frozen.
    """
    digests: dict[Node, str] = {}
    for node in analysis.graph.nodes:
        digests[node] = digest(node, root, digests, shape)
    frozen = {node for node in analysis.frozen if digests[node] == analysis.digests[node]}
    return replace(analysis, root=root, digests=digests, frozen=frozenset(frozen))


def _last_reads(graph: fx.Graph) -> dict[Node, list[Node]]:
    """Return for each node the values that are not read after it."""
    last = {read: node for node in graph.nodes for read in node.all_input_nodes}
    reads: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        reads.setdefault(last.get(node, node), []).append(node)
    return reads


def _arguments(node: Node, values: Mapping[Node, Any]) -> Any:
    def value(argument: Any) -> Any:
        return values[argument] if isinstance(argument, Node) else argument

    return map_aggregate((node.args, node.kwargs), value)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _addresses(value: Any) -> set[int]:
    return set(map(_address, _tensors(value))) - {0}


def classify(few: Any, many: Any) -> Kind:
    """Return the kind of a node's value from its values for the two batches."""
    if isinstance(few, Tensor) and isinstance(many, Tensor):
        return _classify_tensor(few, many)
    if type(few) is not type(many):
        return Unknown()
    if isinstance(few, tuple | list) and len(few) == len(many):
        items = tuple(map(classify, few, many))
        constants = [item.value for item in items if isinstance(item, Constant)]
        if len(constants) == len(items):
            return Constant(type(few)(constants))
        return Nested(type(few), items)
    if few == many:
        return Constant(few)
    if isinstance(few, int) and few * MANY == many * FEW and few % FEW == 0:
        return BatchMultiple(few // FEW)
    return Unknown()


def _classify_tensor(few: Tensor, many: Tensor) -> Kind:
    if few.shape == many.shape:
        return Constant(few.clone()) if torch.equal(few, many) else Unknown()
    if few.ndim != many.ndim:
        return Unknown()
    dim, *others = [dim for dim in range(few.ndim) if few.shape[dim] != many.shape[dim]]
    size = few.shape[dim]
    if others or size * MANY != many.shape[dim] * FEW or size % FEW:
        return Unknown()
    each = size // FEW
    for before in [repeats for repeats in range(1, each + 1) if each % repeats == 0]:
        first, second = (to_parts(batch, dim, before, each) for batch in (few, many))
        if _is_close(first, second[MANY - FEW :]):
            return PerImage(tuple(first.shape[1:]), few.dtype, dim, before, each)
    return Unknown()


def _is_close(first: Tensor, second: Tensor) -> bool:
    if torch.equal(first, second) or not first.is_floating_point():
        return torch.equal(first, second)
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
    """Return whether a value of this kind differs from image to image."""
    if isinstance(kind, Nested):
        return any(map(varies_by_image, kind.items))
    return isinstance(kind, PerImage | Unknown)
