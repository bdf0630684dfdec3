"""Clip: the larger of a value and the low end, and of that the smaller of it and the high end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bounds.graph.graph import Node
from bounds.ops.clip import Clip
from milp.encoders.form import Form
from milp.encoders.one_kink import bend

if TYPE_CHECKING:
    from milp.encoder import Encoding


def encode(encoding: Encoding, node: Node) -> Form:
    """The form of a clip: two kinks, one after the other."""
    op = node.op
    assert isinstance(op, Clip)
    form, lower, upper = encoding.read(node.inputs[0])
    zero, one = np.zeros(len(lower)), np.ones(len(lower))
    if np.isfinite(op.low):
        form, lower, upper = bend(encoding, form, lower, upper, zero, one, np.full(len(lower), op.low))
    if np.isfinite(op.high):
        form, _, _ = bend(encoding, form, lower, upper, one, zero, np.full(len(lower), op.high))
    return form
