"""The methods of `rmax radius` by their names, in the order of its help. A table without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

SEARCH, ATTACK = "search", "attack"
BOUND, GRADIENT = "bound", "gradient"
ESTIMATE = "estimate"


@dataclass(frozen=True)
class Entry:
    """One method: its kind, a few words, and its source. Every method has r2 from attacks; r1 is proved by what its
    kind says, by an estimate nothing is."""

    kind: str
    summary: str
    source: str = ""


METHODS = {
    "auto": Entry(SEARCH, "attacks, bounds, then ball after ball until the ends meet", "docs/radius.md"),
    "milp": Entry(SEARCH, "mixed programmes, class by class", "arXiv:1711.07356"),
    "attack": Entry(ATTACK, "r2 alone"),
    "ibp": Entry(BOUND, "intervals", "arXiv:1810.12715"),
    "zonotope": Entry(BOUND, "zonotopes (DeepZ)", "NeurIPS 2018"),
    "fastlin": Entry(BOUND, "Fast-Lin", "arXiv:1804.09699"),
    "crown-ibp": Entry(BOUND, "CROWN with neurons by intervals", "arXiv:1906.06316"),
    "crown": Entry(BOUND, "CROWN", "arXiv:1811.00866"),
    "alpha-crown": Entry(BOUND, "CROWN with slopes that are optimised", "arXiv:2011.13824"),
    "meet": Entry(BOUND, "the tighter of several"),
    "fastlip": Entry(GRADIENT, "local Lipschitz constants: Fast-Lip", "arXiv:1804.09699"),
    "recurjac": Entry(GRADIENT, "the same: RecurJac", "arXiv:1810.11783"),
    "jacobian": Entry(GRADIENT, "the same: linear bounds of Clarke Jacobians", "arXiv:2210.07394"),
    "clever": Entry(ESTIMATE, "an estimate beside CROWN's r1, proves nothing", "arXiv:1801.10578"),
}
COUNTING = ("auto", "attack")  # those for norm 0
