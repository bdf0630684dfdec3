"""Where the free slopes of a block of rows start, and the boxes they lie in."""

from __future__ import annotations

from bounds.backward import Backward, Block, Params
from bounds.ops.base import Elementwise


def initial(engine: Backward, block: Block) -> tuple[Params, Params, Params]:
    """(start, low, high) of the parameters along a block that was pulled back once: CROWN's lines."""
    params: Params = {}
    low: Params = {}
    high: Params = {}
    for (i, what) in list(block.gathered):
        if what != "lines":
            continue
        op = engine.graph.nodes[i].op
        assert isinstance(op, Elementwise)
        # The rows as they were at this node are gone, but their layout was kept with the lines.
        x = engine.intervals[engine.graph.nodes[i].inputs[0]].map(block.gathered[i, "layout"].gather)
        found = op.parameters(x)
        if found is None:
            continue
        start, lowest, highest = found
        shape = (start.shape[0], block.rows.count, *start.shape[2:])
        params[i] = start.expand(shape).clone()
        low[i], high[i] = lowest, highest
    return params, low, high
