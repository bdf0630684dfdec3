"""Max-pool: a binary an entry of a window that may be its largest, one of which is picked (Tjeng, Xiao and Tedrake,
arXiv:1711.07356)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from bounds.graph.graph import Node
from bounds.ops.max_pool import MaxPool
from milp.encoders.form import Form
from milp.problem import Floats

if TYPE_CHECKING:
    from milp.encoder import Encoding


def encode(encoding: Encoding, node: Node) -> Form:
    """The form of a max-pool: windows whose largest entry the bounds leave open become columns."""
    op = node.op
    assert isinstance(op, MaxPool)
    z, lower, upper = encoding.read(node.inputs[0])
    rows = encoding.rows
    windows = _windows(op, encoding.graph.nodes[node.inputs[0]].shape)
    low = np.where(windows >= 0, lower[windows], -np.inf)
    high = np.where(windows >= 0, upper[windows], -np.inf)
    best = low.max(1, keepdims=True)
    out = np.arange(len(windows))
    runs = (windows >= 0) & (high >= best)
    leader = np.where(low == best, 0, 1).argmin(1)  # at least as large as everything that is out of the race
    runs[out, leader] = True
    form = z.take(windows[out, leader])
    open_ = (runs.sum(1) > 1).nonzero()[0]
    if len(open_):
        row, slot = runs[open_].nonzero()
        entries, which = np.unique(windows[open_[row], slot], return_inverse=True)
        v = encoding.hold(z.take(entries), lower[entries], upper[entries])[which]
        y = rows.add_columns(best[open_, 0], high[open_].max(1))
        pick = rows.add_columns(np.zeros(len(v)), np.ones(len(v)), integer=True)
        reach = high[open_].max(1)[row] - lower[windows[open_[row], slot]]
        rows.add_rows([(y[row], 1.0), (v, -1.0)], 0.0, np.inf)
        rows.add_rows([(y[row], 1.0), (v, -1.0), (pick, reach)], -np.inf, reach)
        one_of = sparse.csr_matrix((np.ones(len(pick)), (row, pick)), shape=(len(y), rows.columns))
        rows.add_matrix(one_of, 1.0, 1.0)
        form = form.replaced(open_, y, rows.columns)

        def fill(x: Floats) -> None:
            values = np.full(runs[open_].shape, -np.inf)
            values[row, slot] = x[v]
            x[y] = values.max(1)
            x[pick] = slot == values.argmax(1)[row]
        encoding.fills.append(fill)
    return encoding.sparser(form, low.max(1), high.max(1))


def _windows(op: MaxPool, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The flat positions that each output reads, "out W" (-1: padding), over a map of `shape` "C *map"."""
    windows = op.windows(torch.empty(1, *shape, device="cpu")).numpy()
    size = int(np.prod(shape[1:]))
    every = windows[None] + size * np.arange(shape[0])[:, None, None]
    return np.where(windows[None] >= 0, every, -1).reshape(-1, windows.shape[1])
