"""A row of a registry: where something is defined, and what help says about it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """where: "module:attribute", imported when it is used; source: the paper."""

    where: str
    summary: str
    source: str = ""

    def load(self) -> Any:
        module, _, attribute = self.where.partition(":")
        return getattr(importlib.import_module(module), attribute)
