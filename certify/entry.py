"""A row of a registry: where something is defined, what help says about it, and which values its settings take."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 2**63 - 1  # that PyTorch takes as a seed or a size


@dataclass(frozen=True)
class Entry:
    """where: "module:attribute", imported when it is used; source: the paper."""

    where: str
    summary: str
    source: str = ""

    def load(self) -> Any:
        module, _, attribute = self.where.partition(":")
        return getattr(importlib.import_module(module), attribute)


def fitted(owner: str, given: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Settings in the types that they are annotated with (others than those below as they are).

    Raises ValueError for an unknown name or a value of another type.
    """
    if unknown := set(given) - set(kinds):
        raise ValueError(f"{owner} has no setting {', '.join(sorted(unknown))}; it has {', '.join(kinds) or 'none'}")
    return {name: _fitted(f"{owner}: {name}", value, kinds[name]) for name, value in given.items()}


def _fitted(name: str, value: Any, kind: str) -> Any:
    if kind in ("int", "float"):
        return as_number(name, value, whole=kind == "int")
    if kind == "bool" and not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {value!r}")
    if kind == "str" and not isinstance(value, str):
        raise ValueError(f"{name}: expected a word, got {value!r}")
    if kind == "Sequence[int]":
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name}: expected a list of whole numbers, got {value!r}")
        return [as_number(name, v, whole=True) for v in value]
    return value


def as_number(name: str, value: Any, *, whole: bool) -> int | float:
    """A number, also where it comes as a word. Raises ValueError for anything else."""
    value = read_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value % 1 != 0):
        raise ValueError(f"{name}: expected a {'whole ' * whole}number, got {value!r}")
    if abs(value) > LARGEST and (whole or isinstance(value, int)):
        raise ValueError(f"{name}: expected a {'whole ' * whole}number below 2^63, got {value!r}")
    return int(value) if whole else float(value)


def read_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
