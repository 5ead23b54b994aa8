"""Split a network into a prefix, which never changes, and a tail, which trains.

Values that depend only on the images and on frozen state are the same in every epoch. The prefix
computes them once for each image; the tail continues from the tensors that cross, with the
network's own modules and parameters. Of several possible cuts the one with the fewest bytes is
taken: cheap operations may lie on either side, or on both.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only

from autotune.errors import SplitError
from autotune.models.device_errors import is_device_error
from autotune.models.network import Network
from autotune.models.prefix.batch_analysis import (
    BatchMultiple,
    Constant,
    GraphAnalysis,
    Kind,
    Nested,
    analyze,
    for_other_mode,
    from_parts,
    to_parts,
)
from autotune.models.prefix.graph import (
    Function,
    TraceClone,
    compile_graph,
    is_backbone_attr,
    is_expensive,
    same_graphs,
    trace,
)
from autotune.models.prefix.min_cut import (
    cheapest_cut,
    crossing_kind,
    dependencies,
    first_nodes,
    varies,
)
from autotune.text import error_line

#: Largest relative difference between a network that is split and the whole one, by the type in
#: which products are computed: four to ten times the unit roundoff, which is 2^-9 in bf16 and
#: 2^-12 in fp16 (https://en.wikipedia.org/wiki/Bfloat16_floating-point_format). Where the layout
#: of a tensor changes at the cut, another kernel may continue there and add in another order.
_ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-3}


@dataclass(frozen=True, eq=False)
class _Subgraph:
    """A part of a network as a function.

    Args:
        function: Takes the owner of the modules, what ``needs`` names, and the constants.
        needs: Keys of its arguments.
        constants: Tensors that are the same for all images.
        source: Source of the function.
    """

    function: Function
    needs: tuple[str, ...]
    constants: tuple[Tensor, ...]
    source: str

    def __call__(self, owner: nn.Module, given: Sequence[Tensor]) -> Any:
        return self.function(owner, *given, *self.constants)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The part of a network that never changes, from the images or from features of them.

    It computes without gradients and in evaluation mode, whatever the mode of the network.

    Args:
        needs: Keys of its input tensors, in order; empty for images.
    """

    needs: tuple[str, ...]
    _subgraph: _Subgraph
    _owner: nn.Module

    @torch.no_grad()
    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that cross, each ``(N, *shape)``.

        Args:
            given: Normalized images ``(N, C, H, W)``, or the tensors that ``needs`` names, each
                ``(N, *shape)``. They are not changed.
        """
        crossing: tuple[Tensor, ...] = self._subgraph(self._owner, given)
        return crossing


@dataclass(frozen=True, eq=False)
class PrefixSplit:
    """A network that is cut where training begins.

    Args:
        keys: Key of each crossing tensor, 32 hexadecimal digits: equal keys are equal features,
            given the backbone's weights and the precision. They are the same in every process.
        shapes: Shape of one image's part of each.
        dtypes: Their types.
        is_trivial: Whether nothing expensive lies before the cut.
    """

    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    is_trivial: bool
    _analysis: GraphAnalysis
    _evaluation: _Subgraph
    _training: _Subgraph

    def __deepcopy__(self, memo: dict[int, Any]) -> PrefixSplit:
        """Return itself: nothing of it belongs to one copy of a network."""
        return self

    def prefix(self, available_keys: Sequence[str] = ()) -> Prefix | None:
        """Return the part before the cut.

        Args:
            available_keys: Keys of tensors to start from, as other splits of the backbone have
                them; the prefix needs only those that it uses. Empty for images.

        Returns:
            The prefix, or ``None`` where those tensors do not suffice.
        """
        subgraph = _prefix_subgraph(self._analysis, self.keys, available_keys)
        if subgraph is None:
            return None
        return Prefix(subgraph.needs if available_keys else (), subgraph, self._analysis.root)

    def tail(self, network: nn.Module, crossing: tuple[Tensor, ...], training: bool) -> Tensor:
        """Return the pooled features ``(N, F)``.

        Args:
            network: The network that was split, or a copy of it.
            crossing: The crossing tensors, each ``(N, *shape)``. They are not changed.
            training: Whether trainable layers are in training mode.
        """
        subgraph = self._training if training else self._evaluation
        features: Tensor = subgraph(network, crossing)
        return features


def split_network(network: Network, images: Tensor) -> PrefixSplit:
    """Cut a network where training begins.

    Args:
        network: The network, already on its device; it is not changed. Where it trains under
            autocast, this has to run under it too: crossing tensors get the present types.
        images: Normalized images ``(N, C, H, W)``; only the first is used.

    Raises:
        SplitError: When the backbone cannot be traced, or no cut gives a tensor for each image.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        try:
            return _split(network, images.clone())
        except SplitError:
            raise
        except Exception as error:  # each architecture fails in its own way
            if is_device_error(error):
                raise
            raise SplitError(f"the backbone cannot be split ({error_line(error)})") from error


def _split(network: Network, images: Tensor) -> PrefixSplit:
    trainable = frozenset(network.trainable_state())  # buffers that are not saved are tables
    shape, image = tuple(images.shape[1:]), images[:1]
    clone = TraceClone(network, training=False)
    graph = trace(clone)
    analysis = analyze(clone, graph, trainable, shape, images)
    analyses = [analysis]
    if network.depth:
        active = TraceClone(network, training=True)
        active_graph = trace(active)
        if same_graphs(active_graph, active, graph, clone):
            analyses.append(for_other_mode(active, analysis, shape))
        else:
            analyses.append(
                analyze(active, active_graph, trainable, shape, images, analysis.kinds)
            )
    keys = cheapest_cut(analyses)
    kinds = [crossing_kind(analysis, key) for key in keys]
    prefix = _prefix_subgraph(analysis, keys)
    assert prefix is not None, "the images always suffice"
    crossing = prefix(clone, [image])
    evaluation = _tail_subgraph(analysis, keys, crossing)
    _compare(evaluation(clone, crossing), clone(image))
    training = evaluation
    if network.depth:
        doubled = [part.repeat_interleave(2, 0) for part in crossing]
        training = _tail_subgraph(analyses[1], keys, doubled)
    return PrefixSplit(
        keys,
        tuple(kind.shape for kind in kinds),
        tuple(kind.dtype for kind in kinds),
        not any(
            is_expensive(node, clone) and varies(analysis, node)
            for node in dependencies(analysis, first_nodes(analysis, keys))
        ),
        analysis,
        evaluation,
        training,
    )


def _compare(features: Tensor, expected: Tensor) -> None:
    """Refuse a split network that does something else than the whole one."""
    if features.shape != expected.shape:
        raise SplitError(
            f"prefix and tail give {tuple(features.shape)} instead of {tuple(expected.shape)}"
        )
    # Products are rounded to this type; float32 on a GPU may be TF32, of the bits of fp16.
    device = expected.device.type
    dtype = torch.float16 if device == "cuda" else torch.float32
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    single, whole = features.float(), expected.float()
    off = float((single - whole).norm() / whole.norm().clamp_min(1e-30))
    if not off <= _ROUNDING[dtype]:
        raise SplitError(f"prefix and tail differ from the whole backbone by {off:.1e}")


def _prefix_subgraph(
    analysis: GraphAnalysis, keys: Sequence[str], available_keys: Sequence[str] = ()
) -> _Subgraph | None:
    """Make the part before the cut, from the tensors of some keys; from images without keys."""
    wanted = first_nodes(analysis, keys)
    images = [analysis.digests[node] for node in analysis.graph.nodes if node.op == "placeholder"]
    available = available_keys or images
    needed = dependencies(analysis, wanted, available)
    reached = {analysis.digests[node] for node in needed if node in analysis.frozen}
    used = tuple(dict.fromkeys(key for key in available if key in reached))
    if {*images}.intersection(analysis.digests[node] for node in needed) - {*used}:
        return None
    rewritten = {analysis.digests[node] for node in analysis.rewritten}
    written = [_given(index) for index, key in enumerate(used) if key in rewritten]
    return _subgraph(analysis, used, wanted, written, as_parts=True)


def _tail_subgraph(
    analysis: GraphAnalysis, keys: tuple[str, ...], crossing: Sequence[Tensor]
) -> _Subgraph:
    """Make the part behind the cut, and try it with the crossing tensors of some images."""
    wanted = analysis.graph.output_node().all_input_nodes
    subgraph = _subgraph(analysis, keys, wanted)
    arguments = {_given(index): tensor.clone() for index, tensor in enumerate(crossing)}
    arguments |= {
        _constant(index): tensor.clone() for index, tensor in enumerate(subgraph.constants)
    }
    versions = {name: tensor._version for name, tensor in arguments.items()}
    subgraph.function(analysis.root, *arguments.values())
    written = [name for name, tensor in arguments.items() if tensor._version != versions[name]]
    return _subgraph(analysis, keys, wanted, written) if written else subgraph


def _given(index: int) -> str:
    return f"given_{index}"


def _constant(index: int) -> str:
    return f"constant_{index}"


def _subgraph(
    analysis: GraphAnalysis,
    given: tuple[str, ...],
    wanted: Sequence[Node],
    written: Collection[str] = (),
    as_parts: bool = False,
) -> _Subgraph:
    """Make a function of some nodes of a graph.

    Args:
        analysis: The graph.
        given: Keys of its arguments, which are parts ``(N, *shape)``.
        wanted: The nodes whose values it returns.
        written: The arguments that nodes write to: they get copies.
        as_parts: Whether to return a tuple of parts, and not the one value as it is; writes to
            buffers belong to the latter alone.
    """
    needed = dependencies(analysis, wanted if as_parts else [*wanted, *analysis.effects], given)
    nodes = [node for node in analysis.graph.nodes if node in needed]
    fixed = {
        node: analysis.kinds[analysis.digests[node]] for node in nodes if _is_fixed(analysis, node)
    }
    values = [kind.value for kind in fixed.values() if isinstance(kind, Constant)]
    tensors = {id(leaf): leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    graph = fx.Graph()
    inputs = {key: graph.placeholder(_given(index)) for index, key in enumerate(given)}
    constants = {key: graph.placeholder(_constant(index)) for index, key in enumerate(tensors)}
    count = graph.call_method("size", (next(iter(inputs.values())), 0))

    def argument(place: Node) -> Node:
        return graph.call_method("clone", (place,)) if place.name in written else place

    def literal(kind: Kind) -> Any:
        if isinstance(kind, Constant):
            return tree_map_only(
                Tensor, lambda tensor: argument(constants[id(tensor)]), kind.value
            )
        if isinstance(kind, BatchMultiple):
            return graph.call_function(operator.mul, (count, kind.each))
        assert isinstance(kind, Nested)
        items = [literal(item) for item in kind.items]
        return items if kind.type is list else tuple(items)

    made: dict[Node, Any] = {}
    results: dict[Node, Node] = {}
    for node in nodes:
        key = analysis.digests[node]
        if node in fixed:
            made[node] = literal(fixed[node])
        elif node in analysis.frozen and key in inputs:
            kind = crossing_kind(analysis, key)
            made[node] = argument(inputs[key])
            if not kind.is_batch_first:
                made[node] = graph.call_function(from_parts, (made[node], *kind.layout))
        else:
            made[node] = graph.node_copy(node, made.__getitem__)
        if as_parts and node in wanted:
            result = made[node]
            if node in analysis.rewritten:  # by a node that may follow
                result = graph.call_method("clone", (result,))
            kind = crossing_kind(analysis, key)
            if not kind.is_batch_first:
                result = graph.call_function(to_parts, (result, *kind.layout))
            results[node] = result
    if not count.users:
        graph.erase_node(count)
    graph.output(tuple(results[node] for node in wanted) if as_parts else made[wanted[0]])
    function, source = compile_graph(graph)
    return _Subgraph(function, given, tuple(tensors.values()), source)


def _is_fixed(analysis: GraphAnalysis, node: Node) -> bool:
    """Return whether the value of a frozen node consists of constants and numbers of images."""
    if node not in analysis.frozen or varies(analysis, node):
        return False
    return node.op != "get_attr" or not is_backbone_attr(node)
