"""What is asked about every example, and the names of what may answer. No PyTorch is loaded here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from verifier.attacks.registry import ATTACKS, BEYOND, FIXED

# Steps of the cascade, each over all examples that are still open; the last one is asked alone (`verifier.verify`).
IBP, CROWN, PGD, ROWS, ALPHA = "ibp", "crown", "pgd", "alpha-crown-rows", "alpha-crown"
BATCHED = (IBP, CROWN, PGD, ROWS, ALPHA)


@dataclass(frozen=True)
class Certifier:
    """steps: over all examples at once; alone: the method of `verifier.verify` for what they leave ('': none)."""

    steps: tuple[str, ...]
    alone: str
    summary: str

    @property
    def searches(self) -> bool:
        """Whether it looks for counterexamples as well."""
        return PGD in self.steps or bool(self.alone)


METHODS = {
    "cascade": Certifier(BATCHED, "auto", "all bounds and an attack, then branch and bound one by one"),
    "none": Certifier((), "", "nothing is certified"),
    "ibp": Certifier((IBP,), "", "interval bounds alone"),
    "crown": Certifier((IBP, CROWN), "", "and CROWN"),
    "alpha-crown": Certifier((IBP, CROWN, ROWS, ALPHA), "", "and optimised slopes"),
    "batched": Certifier(BATCHED, "", "the cascade without its last step"),
    "bab": Certifier((IBP, CROWN, PGD), "bab", "branch and bound behind CROWN and an attack"),
    "milp": Certifier(BATCHED, "milp", "a mixed-integer programme in place of branch and bound"),
}

PGD_STEPS = re.compile(r"pgd-([1-9]\d*)")
TRANSFER = "transfer"
COLUMNS = tuple(name for name, entry in ATTACKS.items() if entry.kind != BEYOND and name != TRANSFER)
TRANSFERRED = f"{TRANSFER}-"  # before the name of the attack that works on the surrogate
USUAL_TRANSFER = "pgd-20"      # of the column that a surrogate has in any case


@dataclass(frozen=True)
class Asked:
    """eps, norm (inf, 2 or 1) and clip: the set around every example, in input units. method: of METHODS. attacks:
    `pgd-N` (N steps) or names in `verifier.attacks.registry`; `transfer-` before a white-box one: on the surrogate.
    surrogate: the file of a network whose adversarial examples are tried, those of PGD-20 in any case. time_limit_s: of
    certifying one example. claim: real or float32. evidence: "rounded" certifies with nothing less, "float" saves the
    work, "" gives as much as there is."""

    eps: float
    norm: float = math.inf
    clip: tuple[float, float] | None = None
    method: str = "cascade"
    attacks: tuple[str, ...] = ("pgd-20",)
    surrogate: str | None = None
    time_limit_s: float = 60.0
    claim: str = "real"
    evidence: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be a number >= 0, got {self.eps}")
        if self.norm not in (math.inf, 2.0, 1.0):
            raise ValueError(f"norm must be inf, 2 or 1, got {self.norm}")
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 < self.time_limit_s < math.inf:
            raise ValueError(f"the time limit must be a positive number of seconds, got {self.time_limit_s}")
        if self.claim not in ("real", "float32"):
            raise ValueError(f"claim must be real or float32, got {self.claim!r}")
        if self.evidence not in ("", "float", "rounded"):
            raise ValueError(f"evidence must be float or rounded, got {self.evidence!r}")
        if self.claim == "float32" and self.evidence == "float":
            raise ValueError("claim float32 accounts for all rounding; leave out evidence float")
        if self.claim == "float32" and self.certifier.alone == "milp":
            raise ValueError("claim float32: method milp knows nothing of float32's rounding")
        if self.norm == 2.0 and self.certifier.alone == "milp":
            raise ValueError("method milp works in the norms inf and 1: its solver has no quadratic rows")
        for name in self.attacks:
            entry = ATTACKS[attack_settings(name.removeprefix(TRANSFERRED))[0]]
            if name.startswith(TRANSFERRED) and (self.surrogate is None or entry.kind != FIXED):
                raise ValueError(f"attack {name} needs a surrogate, and an attack that is {FIXED}")
            if {math.inf: "inf", 2.0: "2", 1.0: "1"}[self.norm] not in entry.norms:
                raise ValueError(f"attack {name} works in the norms {', '.join(entry.norms)}, not {self.norm:g}")
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks are named once each, got {', '.join(self.attacks)}")

    @property
    def certifier(self) -> Certifier:
        return METHODS[self.method]

    @property
    def columns(self) -> tuple[str, ...]:
        """The attacks by the names of their columns."""
        return self.attacks if self.surrogate is None else (*self.attacks, TRANSFER)


def attack_settings(name: str) -> tuple[str, dict[str, Any]]:
    """(the name in `verifier.attacks.registry`, settings) of an attack that may be a column."""
    if found := PGD_STEPS.fullmatch(name):
        return "pgd", {"steps": int(found[1])}
    if name not in COLUMNS:
        raise ValueError(f"attacks are pgd-N (N steps) and {', '.join(COLUMNS)}, got {name!r}")
    return name, {}
