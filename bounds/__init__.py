"""Bounds of neural networks: what values every neuron can take over an input set.

Names are loaded on first use (PEP 562), so importing this package never loads PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "Graph": "bounds.graph", "UnsupportedOperator": "bounds.graph", "InvalidNetwork": "bounds.graph",
    "Box": "bounds.sets", "LpBall": "bounds.sets", "InputSet": "bounds.sets",
    "Interval": "bounds.interval", "LinearRows": "bounds.bounds", "Bounds": "bounds.bounds",
    "compute_bounds": "bounds.compute",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bounds' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
