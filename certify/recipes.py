"""Sensible defaults for a method on a data set: what `TrainSettings` does not say, and anybody may override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEDULES: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 60, "batch_size": 100, "milestones": [45, 55]},
}
BOUNDED: dict[str, dict[str, Any]] = {
    "digits": {"ramp_begin": 2, "ramp_end": 30, "lr": 2e-3, "validate_with": "ibp"},
}


def recipe(method: str, data: str, model: str) -> Mapping[str, Any]:
    """Settings by name; empty where nothing is known."""
    from certify.registry import bounds_sets
    found = dict(SCHEDULES.get(data, {}))
    if bounds_sets(method):
        found |= {"ramp": "smooth", "clip_gradient": 10.0, **BOUNDED.get(data, {})}
    return found
