"""Does a property hold, how far does it hold, and what is the evidence?

Names are loaded on first use (PEP 562), so importing this package never loads PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "verify": "verifier.strategy", "Result": "verifier.strategy",
    "Property": "verifier.property", "robustness": "verifier.property", "read_vnnlib": "verifier.vnnlib",
    "Verified": "verifier.verdict", "Falsified": "verifier.verdict", "Unknown": "verifier.verdict",
    "attack_named": "verifier.attacks.registry", "Threat": "verifier.attacks.threat",
    "Misclassified": "verifier.attacks.criterion", "Deviates": "verifier.attacks.criterion",
    "safe_radius": "verifier.radius.safe_radius", "RadiusInterval": "verifier.radius.interval",
    "robust": "verifier.properties.robust", "reach": "verifier.properties.reach",
    "reaches": "verifier.properties.reach", "enclose": "verifier.properties.enclose",
    "lipschitz_constant": "verifier.properties.lipschitz", "around": "verifier.properties.region",
    "Polytope": "verifier.properties.region", "output_range": "verifier.lipschitz.range",
    "Evidence": "verifier.verdict", "Claim": "verifier.verdict", "Reason": "verifier.verdict",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'verifier' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
