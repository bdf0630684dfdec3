"""Exact optimisation of piecewise-linear networks: MILP, LP and SDP."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Planet": "milp.planet", "Answers": "milp.planet",
    "Certificate": "milp.certificate", "UnsafeRows": "milp.certificate", "certified_value": "milp.certificate",
    "SdpBounds": "milp.sdp", "SdpTooLarge": "milp.sdp",
    "LinearPrograms": "milp.problem", "Solutions": "milp.problem", "Status": "milp.problem",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'milp' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
