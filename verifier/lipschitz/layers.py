"""A network as alternating affine maps and activations: f = A_{l+1} o phi_l o A_l o ... o phi_1 o A_1.

Whatever is affine between two activations is multiplied out to one map, branches included, in float64; every entry
comes with a radius that accounts for rounding and for folded parameters, so that what is proved of all matrices within
the radii is proved of the stored network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from bounds.graph import Graph, UnsupportedOperator
from bounds.ops.base import Affine, Elementwise
from bounds.ops.round_off import MORE, underflow
from bounds.ops.round_off import gamma as gamma_of
from milp.affine_matrix import affine_matrices
from milp.problem import Floats
from milp.safe_bound import gamma
from verifier.lipschitz.slopes import Slopes, slopes

MOST_ENTRIES = 60_000_000  # of one map as a dense matrix: half a gigabyte


@dataclass(frozen=True, eq=False)
class AffineMap:
    """x -> matrix x + constant on flat tensors; entries of the exact map are within the radii ("m n", "m")."""

    matrix: sparse.csr_matrix
    radius: sparse.csr_matrix
    constant: Floats
    constant_radius: Floats

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def dense(self) -> tuple[Floats, Floats]:
        """(matrix, radius) "m n". Raises ValueError where they would not fit."""
        if math.prod(self.shape) > MOST_ENTRIES:
            raise ValueError(f"an affine map of {self.shape[0]} x {self.shape[1]} is too large for a dense matrix "
                             f"(at most {MOST_ENTRIES} entries); operator norms take sparse ones")
        return self.matrix.toarray(), self.radius.toarray()

    def after(self, first: AffineMap | None) -> AffineMap:
        """The map of x -> self(first(x)), None the identity."""
        if first is None:
            return self
        share, least = float(gamma(self.shape[1] + 8)), underflow(self.shape[1], torch.float64)
        size, below = abs(self.matrix), abs(first.matrix)
        reach = size + self.radius
        radius = sparse.csr_matrix(reach @ first.radius + self.radius @ below + share * (size @ below)) * (1 + share)
        radius.data += least
        constant = self.matrix @ first.constant + self.constant
        constant_radius = (reach @ first.constant_radius + self.radius @ np.abs(first.constant) + self.constant_radius
                           + share * (size @ np.abs(first.constant) + np.abs(self.constant))) * (1 + share) + least
        return AffineMap(sparse.csr_matrix(self.matrix @ first.matrix), radius, constant, constant_radius)

    def plus(self, other: AffineMap) -> AffineMap:
        """The sum of both maps."""
        share = float(gamma(4))
        return AffineMap(sparse.csr_matrix(self.matrix + other.matrix),
                         sparse.csr_matrix((self.radius + other.radius + share * (abs(self.matrix) + abs(other.matrix)))
                                           * (1 + share)),
                         self.constant + other.constant,
                         (self.constant_radius + other.constant_radius
                          + share * (np.abs(self.constant) + np.abs(other.constant))) * (1 + share))


def of_matrix(matrix: Floats | sparse.csr_matrix) -> AffineMap:
    """An exact linear map."""
    found = sparse.csr_matrix(matrix, dtype=np.float64)
    m = found.shape[0]
    return AffineMap(found, sparse.csr_matrix(found.shape), np.zeros(m), np.zeros(m))


def identity(size: int) -> AffineMap:
    return of_matrix(sparse.identity(size, format="csr"))


def affine_maps(graph: Graph, i: int) -> list[AffineMap]:
    """One map for each input of affine node i; their sum is the node (the first has its constant)."""
    node = graph.nodes[i]
    op = node.op.detach().to(dtype=torch.float64, device="cpu")
    assert isinstance(op, Affine)
    shapes = [graph.nodes[j].shape for j in node.inputs]
    matrices, constant = affine_matrices(op, shapes)
    terms = op.terms(tuple(shapes), node.shape)
    share = MORE * gamma_of(terms, torch.float64) if terms else 0.0
    least = underflow(terms, torch.float64) if terms else 0.0
    radii = [share * abs(m) for m in matrices]
    constant_radius = share * np.abs(constant) + least
    fold = graph.fold_errors.get(i)
    if fold is not None:
        raw = node.op.detach().to(device="cpu")
        assert isinstance(raw, Affine)
        wrong = fold.to("cpu").operator(raw).to(dtype=torch.float64)
        more, shift = affine_matrices(wrong, shapes)
        radii = [(r + abs(m)) * MORE for r, m in zip(radii, more, strict=True)]
        constant_radius = (constant_radius + np.abs(shift)) * MORE
    zero = np.zeros(len(constant))
    return [AffineMap(sparse.csr_matrix(m), sparse.csr_matrix(r), *((constant, constant_radius) if k == 0 else (zero,
            zero))) for k, (m, r) in enumerate(zip(matrices, radii, strict=True))]


@dataclass(frozen=True, eq=False)
class Layers:
    """`maps` A_1 .. A_{l+1} and `activations` phi_1 .. phi_l with their `slopes`."""

    maps: tuple[AffineMap, ...]
    activations: tuple[Elementwise, ...]
    slopes: tuple[Slopes, ...]
    nodes: tuple[int, ...]
    """The graph's nodes that the activations read."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Sizes of the input, of each activation, and of the output."""
        return (self.maps[0].shape[1], *(m.shape[0] for m in self.maps))

    @property
    def exact_slopes(self) -> bool:
        return all(s.exact for s in self.slopes)


def read_layers(graph: Graph, row: Tensor | None = None) -> Layers:
    """The layers of a graph, with rows of outputs ("m" or "R m") in place of all of them where `row` is given.

    Raises UnsupportedOperator by name where a node joins different activations, or is neither affine nor elementwise.
    """
    found: dict[int, tuple[int, AffineMap | None]] = {0: (0, None)}
    source = 0
    maps: list[AffineMap] = []
    activations: list[int] = []
    for i in sorted(graph.ancestors - {0}):
        node = graph.nodes[i]
        if isinstance(node.op, Affine):
            found[i] = _joined(graph, i, found)
        elif isinstance(node.op, Elementwise):
            origin, first = found[node.inputs[0]]
            if origin != source:
                raise _not_sequential(graph, i)
            maps.append(first or identity(math.prod(node.shape)))
            activations.append(i)
            found[i], source = (i, None), i
        else:
            raise UnsupportedOperator(f"{graph.source}: {node.op.kind} ({node.name}) is neither affine nor elementwise")
    origin, last = found[graph.output]
    if origin != source:
        raise _not_sequential(graph, graph.output)
    last = last or identity(math.prod(graph.output_shape))
    if row is not None:
        last = row_map(graph, row).after(last)
    nodes = [graph.nodes[i] for i in activations]
    return Layers((*maps, last), tuple(n.op for n in nodes if isinstance(n.op, Elementwise)),
                  tuple(slopes(graph, n) for n in nodes), tuple(n.inputs[0] for n in nodes))


def row_map(graph: Graph, row: Tensor) -> AffineMap:
    """Rows of outputs, "m" or "R m", as a map."""
    outputs = math.prod(graph.output_shape)
    rows = row.detach().double().cpu().numpy()
    if rows.ndim not in (1, 2) or rows.shape[-1] != outputs or not np.isfinite(rows).all():
        raise ValueError(f"expected finite rows over {outputs} outputs, got shape {tuple(row.shape)}")
    return of_matrix(np.atleast_2d(rows))


def _joined(graph: Graph, i: int, found: dict[int, tuple[int, AffineMap | None]]) -> tuple[int, AffineMap | None]:
    """(the activation that affine node i reads, the map from there)."""
    inputs = graph.nodes[i].inputs
    origins = {found[j][0] for j in inputs}
    if len(origins) > 1:
        raise _not_sequential(graph, i)
    parts = [m.after(found[j][1]) for j, m in zip(inputs, affine_maps(graph, i), strict=True)]
    return origins.pop(), summed(parts)


def summed(parts: Sequence[AffineMap]) -> AffineMap:
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total


def _not_sequential(graph: Graph, i: int) -> UnsupportedOperator:
    node = graph.nodes[i]
    return UnsupportedOperator(f"{graph.source}: {node.op.kind} ({node.name}) joins the outputs of different "
                               "activations; only operator norms take networks with such branches")
