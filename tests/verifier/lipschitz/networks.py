"""Small networks with what is true of them: sampled gradients, and the patterns of all activations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from bounds.graph import Graph
from bounds.ops.base import Elementwise
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from bounds.sets import InputSet
from tests.bounds.networks import GraphBuilder

DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


def dense(weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None, activation: Elementwise | None = None
          ) -> Graph:
    """A dense network in float64 with one activation between its layers."""
    build = GraphBuilder((weights[0].shape[1],), torch.float64)
    for k, weight in enumerate(weights):
        build.add(Linear(weight.double(), None if biases is None else biases[k].double()))
        if k < len(weights) - 1:
            build.add(activation or Relu())
    return build.graph()


def random_dense(seed: int, widths: Sequence[int], activation: Elementwise | None = None) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(m, n, generator=generator, dtype=torch.float64) * (2 / n) ** 0.5
               for n, m in itertools.pairwise(widths)]
    biases = [torch.randn(m, generator=generator, dtype=torch.float64) * 0.5 for m in widths[1:]]
    return dense(weights, biases, activation)


def points(graph: Graph, count: int = 200, seed: int = 0) -> Tensor:
    """Points near and far, "N *input"."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *graph.input_shape, generator=generator, dtype=torch.float64)
    return x * torch.logspace(-2, 2, count, dtype=torch.float64).view(-1, *(1,) * len(graph.input_shape))


def jacobians(graph: Graph, x: Tensor) -> Tensor:
    """"N m n" over flat outputs and inputs."""
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        y = graph(at).flatten(1)
        rows = [torch.autograd.grad(y[:, k].sum(), at, retain_graph=True)[0].flatten(1) for k in range(y.shape[1])]
    return torch.stack(rows, 1)


def steepest(graph: Graph, row: Tensor | None = None) -> float:
    """The largest spectral norm of a Jacobian that was sampled."""
    J = jacobians(graph, points(graph))
    if row is not None:
        J = (row @ J).unsqueeze(1)
    return float(torch.linalg.matrix_norm(J, 2).max())


def exact_by_patterns(graph: Graph, box: InputSet, row: Tensor, norm: float, *, left: float = 0.0) -> float:
    """The largest dual norm of a gradient over all patterns of a dense network whose region has an interior."""
    linears = [n.op for n in graph.nodes if isinstance(n.op, Linear)]
    weights = [op.weight.numpy() for op in linears]
    biases = [np.zeros(len(op.weight)) if op.bias is None else op.bias.numpy() for op in linears]
    low, high = box.lower[0].numpy(), box.upper[0].numpy()
    free = low < high
    best = 0.0
    for pattern in itertools.product((1, -1), repeat=sum(len(b) for b in biases[:-1])):
        signs = np.split(np.array(pattern), np.cumsum([len(b) for b in biases[:-1]])[:-1])
        A, c, rows, ends = np.eye(len(low)), np.zeros(len(low)), [], []
        for weight, bias, sign in zip(weights, biases, signs, strict=False):
            A, c = weight @ A, weight @ c + bias
            rows.append(-sign[:, None] * A)
            ends.append(sign * c)
            slope = np.where(sign > 0, 1.0, left)
            A, c = slope[:, None] * A, slope * c
        gradient = (row.numpy() @ weights[-1] @ A)[free]
        value = float(np.linalg.norm(gradient, DUAL[norm]))
        if value > best and _room(np.concatenate(rows), np.concatenate(ends), low, high) > 1e-9:
            best = value
    return best


def _room(rows: np.ndarray, ends: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """max t with rows x + t <= ends in the box."""
    found = linprog(np.r_[np.zeros(len(low)), -1.0], np.c_[rows, np.ones(len(rows))], ends,
                    bounds=[*zip(low, high, strict=True), (-1.0, 1.0)], method="highs")
    return -float(found.fun) if found.status == 0 else -1.0
