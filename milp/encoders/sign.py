"""Sign: two binaries a neuron, whose sum is its value plus one. At zero all three values satisfy the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bounds.graph.graph import Node
from bounds.ops.sign import Sign
from milp.encoders.form import Form
from milp.problem import Floats

if TYPE_CHECKING:
    from milp.encoder import Encoding


def encode(encoding: Encoding, node: Node) -> Form:
    """The form of a sign: a constant where it is known (`Sign.slack`)."""
    z, lower, upper = encoding.read(node.inputs[0])
    assert isinstance(node.op, Sign)
    known = node.op.is_linear_on(encoding.intervals[node.inputs[0]]).flatten().cpu().numpy()
    rows = encoding.rows
    form = z.scaled(np.zeros(len(lower)), np.where(lower > 0, 1.0, -1.0))
    open_ = (~known).nonzero()[0]
    if len(open_):
        low, high = np.minimum(lower[open_], 0), np.maximum(upper[open_], 0)
        v = encoding.hold(z.take(open_), low, high)
        y = rows.add_columns(-np.ones(len(open_)), np.ones(len(open_)))
        above, beyond = (rows.add_columns(np.zeros(len(y)), np.ones(len(y)), integer=True) for _ in range(2))
        rows.add_rows([(y, 1.0), (above, -1.0), (beyond, -1.0)], -1.0, -1.0)
        rows.add_rows([(above, 1.0), (beyond, -1.0)], 0.0, np.inf)
        rows.add_rows([(v, 1.0), (beyond, -high)], -np.inf, 0.0)   # z > 0 needs both
        rows.add_rows([(v, 1.0), (above, low)], low, np.inf)       # z < 0 needs neither
        form = form.replaced(open_, y, rows.columns)

        def fill(x: Floats) -> None:
            x[y] = np.sign(x[v])
            x[above], x[beyond] = x[v] >= 0, x[v] > 0
        encoding.fills.append(fill)
    return form
