"""Training methods by name. Nothing is imported before it is used."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from certify.method import Method

METHODS = {
    "standard": "certify.method:Standard",
    "ibp": "certify.losses.ibp:Ibp",
    "pgd": "certify.adversarial.pgd:Pgd",
    "fgsm": "certify.adversarial.fgsm:Fgsm",
    "fgsm-rs": "certify.adversarial.fgsm_rs:FgsmRs",
    "n-fgsm": "certify.adversarial.n_fgsm:NFgsm",
    "free": "certify.adversarial.free:Free",
    "yopo": "certify.adversarial.yopo:Yopo",
    "trades": "certify.adversarial.trades:Trades",
    "mart": "certify.adversarial.mart:Mart",
    "curriculum": "certify.adversarial.curriculum:Curriculum",
    "dynamic": "certify.adversarial.dynamic:Dynamic",
    "guided": "certify.adversarial.guided:Guided",
    "distillation": "certify.adversarial.distillation:Distillation",
}


def method_named(name: str, **settings: Any) -> Method:
    """The method object. Raises ValueError for an unknown name or setting."""
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    module, _, attribute = METHODS[name].partition(":")
    kind: type[Method] = getattr(importlib.import_module(module), attribute)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := set(settings) - known:
        raise ValueError(f"method {name} has no setting {', '.join(sorted(unknown))}; it has "
                         f"{', '.join(sorted(known)) or 'none'}")
    return kind(**settings)
