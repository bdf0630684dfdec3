"""How much memory rows need on their way to the input, from layouts alone."""

from __future__ import annotations

from bounds.graph.graph import Graph
from bounds.ops.base import Affine, Elementwise
from bounds.rows import covers
from bounds.window import Extent


def footprint(graph: Graph, start: int, unit: bool) -> tuple[int, int]:
    """(at the widest node, over all nodes): coefficients that one row over node `start` holds when it is
    pulled back; `unit` rows start at a single neuron."""
    def size(i: int, extent: Extent | None) -> int:
        n = 1
        for s in graph.nodes[i].shape:
            n *= s
        shape = graph.nodes[i].shape
        return n if extent is None else min(n, shape[0] * extent.size[0] * extent.size[1])

    first = Extent((1, 1), (0, 0), (1, 1)) if unit and len(graph.nodes[start].shape) == 3 else None
    pending: dict[int, Extent | None] = {start: first}
    widest, total = 1, 0
    for i in range(start, 0, -1):
        if i not in pending:
            continue
        extent = pending.pop(i)
        node = graph.nodes[i]
        here = size(i, extent)
        widest, total = max(widest, here), total + here
        result: Extent | None = None
        if extent is not None and not covers(extent, node.shape):
            result = _extent_through(graph, i, extent)
        for j in node.inputs:
            if j in pending:
                before = pending[j]
                same = before is not None and result is not None and before.stride == result.stride
                pending[j] = before.union(result) if same else None  # type: ignore[union-attr, arg-type]
            else:
                pending[j] = result
    if 0 in pending:
        here = size(0, pending[0])
        widest, total = max(widest, here), total + here
    return widest, total


def _extent_through(graph: Graph, i: int, extent: Extent) -> Extent | None:
    node = graph.nodes[i]
    shapes = tuple(graph.nodes[j].shape for j in node.inputs)
    if isinstance(node.op, Elementwise):
        return extent
    if not isinstance(node.op, Affine):
        return None
    if node.op.passes_rows(shapes, node.shape) is not None:
        return extent if shapes[0] == node.shape else None
    return node.op.window(extent, shapes[0])
