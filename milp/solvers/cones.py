"""The dual of a semidefinite relaxation through cvxpy (Agrawal, Diamond and others), for Clarabel and SCS.

    max t   subject to   F + sum_k m_k G_k - t E_00  positive semidefinite,   m_k >= 0 for inequalities,

with F the matrix of a linear form c w. The multipliers are the variables: no dual value and no sign convention of a
modelling language comes in between, and the form stands where Clarabel can decompose the cone (its matrix is sparse).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from milp.lifted import QuadraticRows
from milp.mixed import MixedStatus
from milp.problem import Floats
from milp.solvers.statuses import CVXPY, meaning

SOLVERS = ("clarabel", "scs")


@dataclass(frozen=True, eq=False)
class Multipliers:
    """What a solver found: multipliers "K", the value t it claims, and its status. Nothing of it is proved."""

    values: Floats
    claimed: float
    status: MixedStatus


class ConeProgram:
    """The programme of one set, modelled once; each form is a parameter of it."""

    def __init__(self, rows: QuadraticRows, solver: str) -> None:
        import cvxpy as cp

        n, count = rows.size, rows.matrix.shape[1]
        self.solver, self.count = solver.upper(), count
        self.equal = rows.equal
        self.form = cp.Parameter(n - 1)
        self.free = cp.Variable(int(rows.equal.sum())) if rows.equal.any() else None
        self.signed = cp.Variable(int((~rows.equal).sum()), nonneg=True) if not rows.equal.all() else None
        value = cp.Variable()
        slack: Any = _first_row(n) @ self.form - _corner(n) @ cp.reshape(value, (1,), order="C")
        for variable, chosen in ((self.free, rows.equal), (self.signed, ~rows.equal)):
            if variable is not None:
                slack = slack + rows.matrix[:, chosen] @ variable
        self.problem = cp.Problem(cp.Maximize(value), [cp.reshape(slack, (n, n), order="C") >> 0])

    def solve(self, form: Floats, options: dict[str, Any]) -> Multipliers:
        """Multipliers for the form c "n-1"; zeros where the solver, with its own options, gives none."""
        import cvxpy as cp

        values, claimed, status = np.zeros(self.count), -np.inf, MixedStatus.FAILED
        self.form.value = form
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inaccurate solution is as good as any other multipliers
            try:
                self.problem.solve(solver=self.solver, **options)
                status = meaning(CVXPY, str(self.problem.status))
            except cp.error.SolverError:  # no multipliers: the caller has bounds without
                return Multipliers(values, claimed, status)
        for variable, chosen in ((self.free, self.equal), (self.signed, ~self.equal)):
            if variable is not None and variable.value is not None:
                values[chosen] = variable.value
                claimed = float(self.problem.value)
        return Multipliers(values, claimed, status)


def _first_row(n: int) -> sparse.csc_matrix:
    """The linear map "n*n n-1" from c to the symmetric matrix, flat, of the form c w."""
    k = np.arange(1, n)
    return sparse.csc_matrix((np.full(2 * (n - 1), 0.5), (np.r_[k, k * n], np.r_[k - 1, k - 1])), shape=(n * n, n - 1))


def _corner(n: int) -> sparse.csc_matrix:
    return sparse.csc_matrix(([1.0], ([0], [0])), shape=(n * n, 1))
