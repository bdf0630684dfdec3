"""Slow truths about gradients: autograd at points, and every linear piece of a tiny ReLU network."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from bounds.bounds import LinearRows
from bounds.graph import Graph
from bounds.ops.linear import Linear
from bounds.sets import InputSet


def rows_of(graph: Graph, batch: int, count: int = 2, seed: int = 0) -> LinearRows:
    """`count` random rows for every set."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.Size(graph.output_shape).numel()
    C = torch.randn(batch * count, outputs, generator=generator, dtype=torch.float64).to(graph.dtype)
    return LinearRows(C, torch.arange(batch).repeat_interleave(count))


def gradients_at(graph: Graph, rows: LinearRows, x: Tensor) -> Tensor:
    """Autograd's gradients "N P *input" of every row at points x "B P *input" of its set."""
    found = []
    for n, b in enumerate(range(len(rows.C)) if rows.owner is None else rows.owner.tolist()):
        z = x[b].clone().requires_grad_()
        value = (graph(z).flatten(1) @ rows.C[n]).sum()
        found.append(torch.autograd.grad(value, z, materialize_grads=True)[0])
    return torch.stack(found)


def pieces(graph: Graph, sets: InputSet, row: Tensor) -> list[Tensor]:
    """Gradients "F" of `row . f` on every linear piece, of Linear and ReLU layers in turn, that meets the interior of
    the only box: one linear programme for each activation pattern."""
    from scipy.optimize import linprog  # type: ignore[import-untyped]
    layers = [node.op for node in graph.nodes if isinstance(node.op, Linear)]
    low, high = sets.lower[0].flatten().numpy(), sets.upper[0].flatten().numpy()
    hidden = [len(layer.weight) for layer in layers[:-1]]
    found = []
    for signs in itertools.product(*(itertools.product((0, 1), repeat=n) for n in hidden)):
        W, b = np.eye(len(low)), np.zeros(len(low))
        A, c = [], []
        for layer, on in zip(layers, (*signs, None), strict=True):
            assert layer.bias is not None
            W, b = layer.weight.numpy() @ W, layer.weight.numpy() @ b + layer.bias.numpy()
            if on is None:
                break
            for w, constant, active in zip(W, b, on, strict=True):
                A.append(-w if active else w)  # w x + constant >= t, or <= -t
                c.append(constant if active else -constant)
            mask = np.array(on, dtype=float)
            W, b = W * mask[:, None], b * mask
        rows = np.array([[*a, 1.0] for a in A])
        room = linprog([*np.zeros(len(low)), -1.0], rows, c, bounds=[*zip(low, high, strict=True), (0, 1)])
        if room.status == 0 and room.x[-1] > 1e-9:
            found.append(row @ torch.from_numpy(W))
    return found
