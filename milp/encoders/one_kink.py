"""Two straight pieces: ReLU, LeakyReLU, PReLU, and each end of a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bounds.graph.graph import Node
from bounds.ops.one_kink import OneKink
from milp.encoders.form import Form, flat
from milp.problem import Floats

if TYPE_CHECKING:
    from milp.encoder import Encoding


def encode(encoding: Encoding, node: Node) -> Form:
    """The form of a ReLU or one of its kin."""
    z, lower, upper = encoding.read(node.inputs[0])
    left = np.zeros(len(lower))
    if isinstance(node.op, OneKink):
        left = flat(node.op.left_slope(encoding.intervals[node.inputs[0]].lower).expand(1, *node.shape))
    return bend(encoding, z, lower, upper, left, np.ones(len(lower)), np.zeros(len(lower)))[0]


def bend(encoding: Encoding, z: Form, lower: Floats, upper: Floats, left: Floats, right: Floats, at: Floats
         ) -> tuple[Form, Floats, Floats]:
    """(form, ends) of `at + left (z - at)` where z <= at, else `at + right (z - at)`: left, right, at "m"."""
    def value(x: Floats) -> Floats:
        return at + np.where(x >= at, right, left) * (x - at)
    crosses = (lower < at) & (at < upper)
    first, second = value(lower), value(upper)
    low = np.where(crosses, np.minimum(np.minimum(first, second), at), np.minimum(first, second))
    high = np.where(crosses, np.maximum(np.maximum(first, second), at), np.maximum(first, second))
    slope = np.where(upper <= at, left, right)
    form = z.scaled(slope, at - slope * at)
    bent = (crosses & (left != right)).nonzero()[0]
    rows = encoding.rows
    if len(bent):
        l, u, a, b, k = (t[bent] for t in (lower, upper, left, right, at))
        v = encoding.hold(z.take(bent), l, u)
        y = rows.add_columns(low[bent], high[bent])
        pick = rows.add_columns(np.zeros(len(y)), np.ones(len(y)), integer=True)  # 1: z is right of the kink
        # With s the sign of b - a, s y lies above both lines, and on the one that is picked.
        s, far_left, far_right = np.sign(b - a), np.abs(b - a) * (k - l), np.abs(b - a) * (u - k)
        on_left, on_right = s * (k - a * k), s * (k - b * k)
        rows.add_rows([(y, s), (v, -s * a)], on_left, np.inf)
        rows.add_rows([(y, s), (v, -s * b)], on_right, np.inf)
        rows.add_rows([(y, s), (v, -s * a), (pick, -far_right)], -np.inf, on_left)
        rows.add_rows([(y, s), (v, -s * b), (pick, far_left)], -np.inf, on_right + far_left)
        form = form.replaced(bent, y, rows.columns)

        def fill(x: Floats) -> None:
            x[pick] = x[v] >= k
            x[y] = k + np.where(x[v] >= k, b, a) * (x[v] - k)
        encoding.fills.append(fill)
    return encoding.sparser(form, low, high), low, high
