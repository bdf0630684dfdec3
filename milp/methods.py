"""All bound methods by name: those of `bounds.compute`, and relaxations that need a solver."""

from __future__ import annotations

from typing import Any

from bounds.compute import METHODS as WITHOUT_SOLVER
from bounds.compute import method_named as without_solver

WITH_SOLVER = ("lp-last", "lp", "sdp")  # each has a setting `time_limit_s`
METHODS = (*WITHOUT_SOLVER, *WITH_SOLVER)


def method_named(name: str, **settings: Any) -> Any:
    """The method object (or module) of a name in METHODS; settings are fields of alpha-crown, lp and sdp."""
    if name in WITHOUT_SOLVER:
        return without_solver(name, **settings)
    if name in ("lp", "lp-last"):
        from milp.lp import LpBounds
        return LpBounds(layers=name == "lp", **settings)
    if name == "sdp":
        from milp.sdp import SdpBounds
        return SdpBounds(**settings)
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
