"""One file a solver: `solve(problem, *, time_limit_s) -> Solutions`; of mixed-integer programmes `-> MixedAnswer`."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "MIXED_SOLVERS": "milp.solvers.registry", "mixed_solver": "milp.solvers.registry",
    "SolverMissing": "milp.solvers.refusals", "SolverUnsuitable": "milp.solvers.refusals",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'milp.solvers' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
