"""Training methods by name. Nothing is imported before it is used."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from certify.entry import Entry

if TYPE_CHECKING:
    from certify.method import Method

METHODS = {
    "standard": Entry("certify.method:Standard", "cross-entropy on clean inputs"),
    "ibp": Entry("certify.losses.ibp:Ibp", "interval bounds", "arXiv:1810.12715"),
    "smoothing": Entry("certify.losses.noise:Noise", "Gaussian noise, for randomised smoothing",
                       "arXiv:1902.02918"),
}


def method_named(name: str, **settings: Any) -> Method:
    """The method object. Raises ValueError for an unknown name or setting."""
    kind = _class_of(name)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := set(settings) - known:
        raise ValueError(f"method {name} has no setting {', '.join(sorted(unknown))}; it has "
                         f"{', '.join(sorted(known)) or 'none'}")
    return kind(**settings)


def bounds_sets(name: str) -> bool:
    """Whether a method's loss needs bounds."""
    return _class_of(name).bounds_sets


def _class_of(name: str) -> type[Method]:
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    found: type[Method] = METHODS[name].load()
    return found
