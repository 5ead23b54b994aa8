"""Find the fewest bytes that separate the expensive frozen nodes of a graph from its tail."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch.fx import Node

from autotune.errors import SplitError
from autotune.models.prefix.batch_analysis import GraphAnalysis, PerImage, varies_by_image
from autotune.models.prefix.graph import is_expensive

#: Capacity that no cut may use.
_INFINITE = 2**30


def crossing_kind(analysis: GraphAnalysis, key: str) -> PerImage:
    """Return the kind of a crossing tensor."""
    kind = analysis.kinds[key]
    assert isinstance(kind, PerImage), "only such tensors are cut"
    return kind


def varies(analysis: GraphAnalysis, node: Node) -> bool:
    """Return whether the value of a frozen node differs from image to image."""
    return varies_by_image(analysis.kinds[analysis.digests[node]])


def dependencies(
    analysis: GraphAnalysis, wanted: Iterable[Node], given: Iterable[str] = ()
) -> set[Node]:
    """Return all nodes that some nodes need, these included, without what ``given`` replaces."""
    needed: set[Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        is_given = node in analysis.frozen and (
            analysis.digests[node] in given or not varies(analysis, node)
        )
        waiting += [] if is_given else node.all_input_nodes
    return needed


def first_nodes(analysis: GraphAnalysis, keys: Sequence[str]) -> list[Node]:
    """Return the first frozen node of each digest."""
    nodes = {
        analysis.digests[node]: node
        for node in reversed(analysis.graph.nodes)
        if node in analysis.frozen
    }
    return [nodes[key] for key in keys]


def cheapest_cut(analyses: Sequence[GraphAnalysis]) -> tuple[str, ...]:
    """Return the digests of the nodes to cut at, in the order of the graph.

    A minimum cut of the frozen nodes that differ from image to image, those of the graphs of both
    modes in one. The images and the expensive nodes are its sources; the nodes that the tail
    reads are its sinks.

    Raises:
        SplitError: When a tensor would have to cross that has no part for each image.
    """
    bytes_of: dict[str, int] = {}
    edges: set[tuple[str, str]] = set()
    sources: set[str] = set()
    sinks: set[str] = set()
    for analysis in analyses:
        needed = dependencies(analysis, [analysis.graph.output_node(), *analysis.effects])
        for node in [candidate for candidate in analysis.graph.nodes if candidate in needed]:
            key, is_frozen = analysis.digests[node], node in analysis.frozen
            if is_frozen:
                if not varies(analysis, node):
                    continue
                kind = analysis.kinds[key]
                bytes_of[key] = max(kind.bytes, 1) if isinstance(kind, PerImage) else _INFINITE
                if node.op == "placeholder" or is_expensive(node, analysis.root):
                    sources.add(key)
            for argument in node.all_input_nodes:
                if argument in analysis.frozen and varies(analysis, argument):
                    if is_frozen:
                        edges.add((analysis.digests[argument], key))
                    else:
                        sinks.add(analysis.digests[argument])
    return _minimum_cut(bytes_of, edges, sources, sinks)


def _minimum_cut(
    bytes_of: Mapping[str, int],
    edges: Collection[tuple[str, str]],
    sources: Collection[str],
    sinks: Collection[str],
) -> tuple[str, ...]:
    """Return the vertices of least weight that separate sources from sinks.

    Of several such sets the one nearest to the sinks is taken: less is computed behind it.
    """
    keys = list(bytes_of)
    # Every vertex is an arc of its weight, from its entrance to its exit.
    enter = {key: 2 * index for index, key in enumerate(keys)}
    source, sink = 2 * len(keys), 2 * len(keys) + 1
    arcs = [(enter[key], enter[key] + 1, bytes_of[key]) for key in keys]
    arcs += [(enter[start] + 1, enter[end], _INFINITE) for start, end in edges]
    arcs += [(source, enter[key], _INFINITE) for key in sources]
    arcs += [(enter[key] + 1, sink, _INFINITE) for key in sinks]
    tails, heads, sizes = np.array(arcs, dtype=np.int32).reshape(-1, 3).T
    capacity = csr_array(coo_array((sizes, (tails, heads)), shape=(sink + 1, sink + 1)))
    flow = maximum_flow(capacity, source, sink).flow
    passing = int(flow[:, [sink]].toarray().astype(np.int64).sum())
    if not passing:
        raise SplitError("the output of the backbone does not depend on the images")
    if passing >= _INFINITE:
        raise SplitError("the trainable layers read a tensor that mixes the images of a batch")
    left = csr_array(capacity - flow)
    left.eliminate_zeros()
    behind = set(breadth_first_order(csr_array(left.T), sink, return_predecessors=False).tolist())
    return tuple(key for key in keys if enter[key] not in behind and enter[key] + 1 in behind)
