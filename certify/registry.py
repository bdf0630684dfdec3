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
    "smoothing": "certify.losses.noise:Noise",
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
