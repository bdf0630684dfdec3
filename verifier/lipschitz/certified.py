"""One door to all certified constants of functions of the outputs over one convex set.

For `F = G(z)` with linear parts z, `||grad F|| <= sum_k |dG / dz_k| ||grad z_k|| <= (sum_k |dG / dz_k|) max_k
||grad z_k||`: a constant of every part and the function's steepness in them (`OutputFunction.steepness`) give one of F.

Local methods enclose the gradient over the set; "exact" closes the constant of small ReLU networks on boxes (for a
ball: on the box around it); global ones hold everywhere. Those of l_2 count in other norms by `||x||_2 <= ||x||_1` and
`||x||_2 <= sqrt(n) ||x||_inf`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bounds.graph import Graph, UnsupportedOperator
from bounds.interval import Interval
from bounds.jacobian.compute import METHODS as LOCAL
from bounds.jacobian.enclosure import dual
from bounds.sets import InputSet
from verifier.deadline import Deadline
from verifier.lipschitz.constant import Constant
from verifier.lipschitz.functions import OutputFunction
from verifier.lipschitz.local import local_lipschitz
from verifier.lipschitz.parts import linear_parts, rows_of_every

GLOBAL = ("norms", "eclipse-fast", "eclipse", "lipsdp", "lipsdp-layer")
METHODS = (*LOCAL, "exact", *GLOBAL)
UP = 1 + 2.0**-50  # a product of two rounded numbers
Kept = dict[tuple[str, float, tuple[float, ...]], Constant]
"""Constants that hold everywhere, of one graph: by method, norm and row."""
LEAST_S = 1e-3     # for a row whose time has passed: searches stop with what they have


@torch.no_grad()
def certified_constants(graph: Graph, sets: InputSet, functions: Sequence[OutputFunction], *, norm: float,
                        methods: Sequence[str] = ("jacobian",), deadline: Deadline | None = None,
                        kept: Kept | None = None) -> list[Constant]:
    """`|F(x) - F(y)| <= value ||x - y||_norm` for all x, y of one set, for every function: of every linear part the
    least that any of the methods proves. graph and sets in float64. time_s: of all together.

    kept: constants of rows that hold everywhere, for further questions about the same graph. A method that does not
    take the network or the set is left out where others do. Raises UnsupportedOperator or ValueError where none does.
    """
    begin = time.monotonic()
    dual(norm)
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise ValueError(f"methods must be of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
    outputs = math.prod(graph.output_shape)
    rows = [tuple(t.to(sets.lower) for t in function.rows(outputs)) for function in functions]
    sizes = [len(C) for C, _ in rows]
    C, c = (torch.cat([row[i] for row in rows]) for i in (0, 1))
    parts = _best_of_rows(graph, sets, C, norm, methods, deadline or Deadline.starting_now(),
                          {} if kept is None else kept)
    z, _ = linear_parts(graph, sets, C, c, "crown")
    time_s = time.monotonic() - begin
    found = []
    for k, (function, low, high) in enumerate(zip(functions, z.lower.split(sizes, 1), z.upper.split(sizes, 1),
                                                  strict=True)):
        mine = parts[sum(sizes[:k]):sum(sizes[:k + 1])]
        worst, share = max(mine, key=lambda part: part.value), float(function.steepness(Interval(low, high))[0])
        share = math.inf if math.isnan(share) else share  # of outputs that overflow nothing is known
        value = 0.0 if 0.0 in (worst.value, share) else worst.value if share == 1 else worst.value * share * UP
        found.append(Constant(value, min(part.evidence for part in mine), worst.method, time_s, worst.note))
    return found


def _best_of_rows(graph: Graph, sets: InputSet, C: Tensor, norm: float, methods: Sequence[str], deadline: Deadline,
                  kept: Kept) -> list[Constant]:
    best: list[Constant] = []
    refused: list[Exception] = []
    for name in methods:
        try:
            found = _by(name, kept)(graph, sets, C, norm, deadline)
        except (UnsupportedOperator, ValueError) as error:
            refused.append(error)
            continue
        best = [min(pair, key=lambda part: part.value) for pair in zip(best, found, strict=True)] if best else found
    if not best:
        raise refused[0]
    return best


_Method = Callable[[Graph, InputSet, Tensor, float, Deadline], list[Constant]]


def _by(name: str, kept: Kept) -> _Method:
    if name == "exact":
        return _exact
    return partial(_local, name) if name in LOCAL else partial(_global, name, kept)


def _local(name: str, graph: Graph, sets: InputSet, C: Tensor, norm: float, deadline: Deadline) -> list[Constant]:
    found = local_lipschitz(graph, sets, rows_of_every(sets, C), norm=norm, method=name)
    return [Constant(value, found.evidence, name) for value in found.constant.tolist()]


def _exact(graph: Graph, sets: InputSet, C: Tensor, norm: float, deadline: Deadline) -> list[Constant]:
    from verifier.lipschitz.exact import exact_local
    box = InputSet(sets.lower, sets.upper)  # of a ball: the box around it, whose constant is no less
    found = []
    for k, row in enumerate(C):
        part = Deadline.starting_now(max(LEAST_S, deadline.left() / (len(C) - k)))
        bracket = exact_local(graph, box, row, norm=norm, deadline=part)
        found.append(Constant(bracket.upper, bracket.evidence, "exact", note=bracket.note if bracket.complete else
                              "the time ended before the exact constant was known"))
    return found


def _global(name: str, kept: Kept, graph: Graph, sets: InputSet, C: Tensor, norm: float, deadline: Deadline
            ) -> list[Constant]:
    """Methods whose constants hold everywhere: each row is asked about once."""
    own = norm if name == "norms" else 2.0  # what else than norms is l_2
    keys = [(name, own, tuple(row.tolist())) for row in C]
    missing = [k for k, key in enumerate(keys) if key not in kept]
    for left, k in zip(range(len(missing), 0, -1), missing, strict=True):
        if name == "norms":
            from verifier.lipschitz.operator_norms import operator_norm_constant
            kept[keys[k]] = operator_norm_constant(graph, norm_in=norm, norm_out=math.inf, row=C[k])
        else:
            kept[keys[k]] = global_euclidean(graph, name, row=C[k], time_limit_s=max(LEAST_S, deadline.left() / left))
    found = [kept[key] for key in keys]
    if name == "norms":
        return found
    moving = int((sets.lower < sets.upper).sum())
    share = math.sqrt(moving) * UP if norm == math.inf else 1.0
    return [Constant(part.value * share * UP, part.evidence, name, note=part.note) for part in found]


def global_euclidean(graph: Graph, name: str, *, row: Tensor | None = None, time_limit_s: float = math.inf) -> Constant:
    """The l_2 constant of the network, or of rows "m" or "R m", by one of the methods behind "norms" in GLOBAL."""
    if name.startswith("eclipse"):
        from verifier.lipschitz.eclipse import eclipse
        return eclipse(graph, fast=name == "eclipse-fast", row=row, time_limit_s=time_limit_s)
    from verifier.lipschitz.lipsdp import lipsdp
    return lipsdp(graph, variant="layer" if name == "lipsdp-layer" else "neuron", row=row, time_limit_s=time_limit_s)


__all__ = ["GLOBAL", "LOCAL", "METHODS", "certified_constants", "global_euclidean"]
