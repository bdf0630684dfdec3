"""SDP: bounds of small networks by their semidefinite relaxation (Raghunathan, Steinhardt and Liang, arXiv:1811.01057).

The relaxation keeps products of neurons, which no linear one does, and is never looser than the Planet relaxation over
the same intermediate bounds; those come from CROWN unless they are given. Its price is a cone as large as the square
of the number of inputs that move and neurons that are undecided, and one solve a row.

A solver's value is not believed. For any multipliers m (>= 0 at inequalities) and any t, with S the matrix of
`F + sum_k m_k G_k - t E_00` (`milp.lifted`), every point of the set has

    c w  >=  t + <S, v v^T>  >=  t + n min(0, lambda_min(S)),        as the trace of v v^T is at most n.

`safe_value` evaluates this in float64 with its rounding accounted for, after it has raised the multipliers of all
w_i^2 <= 1 by the one number, and chosen the t, that give most. Nothing is accounted for the rounding of the
coefficients themselves: bounds are valid up to that, as those of the other methods.

Left out: a ball enters as its l_2 ball; max-pools, clips and smooth operators are refused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds.backward import Backward, adaptive
from bounds.bounds import Bounds, LinearRows
from bounds.final import final_bounds, owner_of
from bounds.graph import Graph
from bounds.intermediate import refine
from bounds.interval import Interval
from bounds.precision import rounded_down
from bounds.sets import InputSet
from milp.encoders.form import flat
from milp.lifted import Lifted, QuadraticRows, check_operators, variables_of
from milp.problem import Floats
from milp.solvers.cones import SOLVERS, ConeProgram

EPS = float(np.finfo(np.float64).eps)
MOST_VARIABLES = 110   # Clarabel takes a minute and a half for a row, where nothing is sparse
SCS_TOLERANCE = 1e-5   # its own default, 1e-4, cost up to 8 % of a bound for half the time
EIGENVALUE_ULPS = 4    # times n and the norm: the backward error of a symmetric eigenvalue solver (LAPACK)
BISECTION_STEPS = 100  # for the shift: halves an interval until floats end


class SdpTooLarge(MemoryError):
    """The relaxation of one set has more variables than its limit."""


@dataclass(frozen=True)
class SdpBounds:
    """Settings: the solver ("clarabel": an interior-point method; "scs": first-order, less accurate and lighter), the
    most variables a set may have, and the time that one row and all rows together may take, after which a row has what
    the solver got to, or its box bound.

    `both_parts` bounds the products of both parts of every neuron, not of its output alone: 0 to 7 % tighter on random
    networks, but without effect on the digits network, where it took four times as long (the cone is no longer sparse).

    Clarabel's time grows with the sixth power of the variables where all neurons are undecided: 1 s for 50, 50 s for
    100 (measured on one core); SCS took 0.4 s and 15 s and lost up to 0.3 %.
    """

    solver: str = "clarabel"
    most_variables: int = MOST_VARIABLES
    row_time_limit_s: float = 120.0
    time_limit_s: float = math.inf
    both_parts: bool = False

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if not (self.row_time_limit_s > 0 and self.time_limit_s >= 0):
            raise ValueError(f"row_time_limit_s must be > 0 and time_limit_s >= 0, got {self.row_time_limit_s} and "
                             f"{self.time_limit_s}")

    def bound(self, graph: Graph, sets: InputSet, rows: LinearRows, *, given: Mapping[int, Interval] | None = None,
              params: Any = None) -> Bounds:
        """Lower bounds of the rows; `given` nodes are not bounded again, and `params` are not used.

        Raises UnsupportedOperator by name, and SdpTooLarge before anything is solved.
        """
        end = time.monotonic() + self.time_limit_s
        check_operators(graph)
        engine = Backward(graph, sets, adaptive)
        intervals = refine(engine, given=given, row_bound=engine.lower)
        owner = owner_of(rows, sets.batch).domains(rows.C.shape[0], rows.C).cpu()
        graph, sets = graph.to(dtype=torch.float64, device="cpu"), sets.to(dtype=torch.float64, device="cpu")
        parts = [(sets.index(torch.tensor([b])), intervals_of(intervals, b, sets.batch))
                 for b in range(sets.batch)]
        for part, known in parts:
            self._check_size(graph, variables_of(graph, part, known))
        found = final_bounds(engine, rows, intervals)  # CROWN's: the least that a row gets
        lower = found.lower.to("cpu", torch.float64)
        for b, (part, known) in enumerate(parts):
            chosen = (owner == b).nonzero().squeeze(1)
            if len(chosen):
                lifted = Lifted(graph, part, known, both_parts=self.both_parts)
                lower[chosen] = torch.maximum(lower[chosen], self._one_set(lifted, rows, chosen, end))
        return replace(found, lower=rounded_down(lower, rows.C.dtype).to(rows.C.device), A=None, b=None)

    def _check_size(self, graph: Graph, size: int) -> None:
        if size - 1 > self.most_variables:
            raise SdpTooLarge(f"{graph.source}: the semidefinite relaxation has {size - 1} variables (inputs that move "
                              f"and undecided neurons), more than {self.most_variables}; a smaller input set, tighter "
                              "intermediate bounds or a linear method may do")

    def _one_set(self, lifted: Lifted, rows: LinearRows, chosen: Tensor, end: float) -> Tensor:
        """Lower bounds of the rows of one set."""
        def taken(t: Tensor) -> Floats:
            return t.detach()[chosen.to(t.device)].to("cpu", torch.float64).flatten(1).numpy()
        forms = taken(rows.C) @ lifted.output
        if rows.D is not None:
            forms = forms + taken(rows.D) @ lifted.input
        if rows.offset is not None:
            forms[:, 0] += flat(rows.offset)[chosen.numpy()]
        return torch.from_numpy(self.forms_lower(lifted.rows(), forms, end))

    def forms_lower(self, rows: QuadraticRows, forms: Floats, end: float = math.inf) -> Floats:
        """Lower bounds "N" of affine forms "N n" of v; none is begun after `end` (of `time.monotonic`)."""
        scale = np.abs(forms[:, 1:]).sum(1)
        lower = -scale  # |w| <= 1
        program: ConeProgram | None = None
        for k in range(len(forms)):
            left = end - time.monotonic()
            if left <= 0:
                break
            if scale[k] > 0 and not is_box(rows):
                program = program or ConeProgram(rows, self.solver)
                unit = forms[k, 1:] / scale[k]
                found = program.solve(unit, self._options(left))
                lower[k] = max(lower[k], scale[k] * safe_value(rows, unit, found.values))
        return forms[:, 0] + lower - EPS * (forms.shape[1] * scale + np.abs(forms[:, 0]) + np.abs(lower))

    def _options(self, left: float) -> dict[str, Any]:
        limit = min(left, self.row_time_limit_s)
        if self.solver == "scs":
            return {"time_limit_secs": limit, "eps_abs": SCS_TOLERANCE, "eps_rel": SCS_TOLERANCE}
        return {"time_limit": limit, "accept_unknown": True}


def is_box(rows: QuadraticRows) -> bool:
    """Are there no rows but `w^2 <= 1`?"""
    return rows.matrix.shape[1] == rows.size - 1


def safe_value(rows: QuadraticRows, form: Floats, multipliers: Floats) -> float:
    """A proved lower bound of c w over the set, c = `form` "n-1", from any multipliers "K"; -inf where they overflow.

    Multipliers of inequalities are clipped at zero. The rounding of this evaluation is accounted for.
    """
    n = rows.size
    m = np.where(np.isfinite(multipliers), multipliers, 0.0)
    m = np.where(rows.equal, m, np.maximum(m, 0))
    with np.errstate(all="ignore"):
        S = (rows.matrix @ m).reshape(n, n)
        size = (abs(rows.matrix) @ np.abs(m)).reshape(n, n)
        S[0, 1:] += form / 2
        S[1:, 0] += form / 2
        size[0, 1:] += np.abs(form)
        if not np.isfinite(np.linalg.norm(S) + np.linalg.norm(size)):
            return -np.inf
        try:
            t, shift = best_shift(S)
            S[np.arange(1, n), np.arange(1, n)] += shift
            S[0, 0] -= (n - 1) * shift + t
            size[np.arange(n), np.arange(n)] += n * shift + abs(t)
            # Entries are sums of at most K + 3 rounded products: what they and the eigenvalue may be wrong by.
            error = EPS * (len(m) + 8) * np.linalg.norm(size) + EIGENVALUE_ULPS * n * EPS * np.linalg.norm(S)
            least = min(0.0, float(np.linalg.eigvalsh(S)[0]) - float(error))
        except np.linalg.LinAlgError:  # no eigenvalues, no bound
            return -np.inf
        value = t + float(n) * least * (1 + 8 * EPS)
    return float(value) if np.isfinite(value) and shift >= 0 else -np.inf


def best_shift(S: Floats) -> tuple[float, float]:
    """(t, d): over d >= 0 the largest t for which S + d diag(1 - n, 1, .., 1) - t E_00 is positive semidefinite.

    With the eigenvalues e and the first row p (in their basis) of the rest of S, t(d) = S_00 - (n-1) d - sum p^2/(e+d),
    which is concave. Found up to rounding: whoever uses it checks.
    """
    e, Q = np.linalg.eigh(S[1:, 1:])
    p2 = (S[0, 1:] @ Q) ** 2
    m = len(e)
    # Where e + d is no larger than rounding, the sum is noise.
    floor = max(0.0, -float(e[0])) + 8 * EPS * m * max(float(np.abs(e).max()), 1e-300)
    low, high = floor, floor + float(np.sqrt(p2.sum() / m)) + float(np.abs(e).max())
    for _ in range(BISECTION_STEPS):
        d = (low + high) / 2
        low, high = (d, high) if float((p2 / (e + d) ** 2).sum()) > m else (low, d)
    d = high
    return float(S[0, 0]) - m * d - float((p2 / (e + d)).sum()), d


def intervals_of(intervals: Mapping[int, Interval], b: int, batch: int) -> dict[int, Interval]:
    """Those of one set, in the CPU's memory."""
    return {i: x.map(lambda t: (t if t.shape[0] == 1 and batch > 1 else t[b:b + 1]).cpu())
            for i, x in intervals.items()}
