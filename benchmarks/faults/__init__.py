"""Faults planted by `benchmarks/mutation.py`, grouped by area."""

from __future__ import annotations

from benchmarks.faults import (
    attacking,
    operators,
    pricing,
    programmes,
    propagation,
    radius,
    searching,
    training,
    verdicts,
)
from benchmarks.faults.fault import KINDS, Fault

AREAS: dict[str, tuple[Fault, ...]] = {
    "operators": operators.FAULTS,
    "propagation": propagation.FAULTS,
    "rounding, rewrites": pricing.FAULTS,
    "programmes": programmes.FAULTS,
    "search": searching.FAULTS,
    "questions, answers": verdicts.FAULTS,
    "attacks": attacking.FAULTS,
    "radii, constants": radius.FAULTS,
    "training, worth": training.FAULTS,
}

__all__ = ["AREAS", "KINDS", "Fault"]
