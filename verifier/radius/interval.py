"""What is known of a safe radius: an interval that only shrinks, each end with its evidence and its method."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

from verifier.verdict import Claim, Evidence
from verifier.witness import Witness

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RadiusInterval:
    """`lower <= r_max <= upper`: no unsafe point is nearer than `lower` (or as near, where it is below `upper`), and
    `witness` is unsafe, `upper` away (None and inf: none is known). lower inf: no point of the whole range is unsafe.
    The distance is in the units of the inputs, in the norm asked about; in l_0 a number of features."""

    lower: float = 0.0
    upper: float = math.inf
    lower_evidence: Evidence = Evidence.ROUNDED  # that a distance is not negative needs no proof
    upper_evidence: Evidence = Evidence.ROUNDED
    lower_by: str = ""
    upper_by: str = ""
    witness: Witness | None = None
    claim: Claim = Claim.REAL

    @property
    def gap(self) -> float:
        """upper - lower; 0 where nothing is unsafe."""
        return 0.0 if self.lower == self.upper else self.upper - self.lower

    def raised(self, lower: float, evidence: Evidence, by: str) -> RadiusInterval:
        """With a better lower end; a worse one changes nothing. Of ends that clash the one with less evidence goes (a
        witness in float32 need not be one over the reals); with as much FLOAT on both sides the older one stays."""
        if not lower > self.lower:
            return self
        base = self
        if lower > self.upper:
            if not _wins(evidence, self.upper_evidence, f"{by} proves a safe radius of {lower!r}, but {self.upper_by} "
                         f"has a witness at {self.upper!r}"):
                return self
            base = replace(self, upper=math.inf, upper_evidence=Evidence.ROUNDED, upper_by="", witness=None)
        return replace(base, lower=lower, lower_evidence=evidence, lower_by=by)

    def lowered(self, upper: float, evidence: Evidence, by: str, witness: Witness | None) -> RadiusInterval:
        """With a nearer witness; a further one changes nothing. Ends that clash: as in `raised`."""
        if not upper < self.upper:
            return self
        base = self
        if upper < self.lower:
            if not _wins(evidence, self.lower_evidence, f"{by} has a witness at {upper!r}, but {self.lower_by} proves "
                         f"a safe radius of {self.lower!r}"):
                return self
            base = replace(self, lower=0.0, lower_evidence=Evidence.ROUNDED, lower_by="")
        return replace(base, upper=upper, upper_evidence=evidence, upper_by=by, witness=witness)


def _wins(new: Evidence, old: Evidence, clash: str) -> bool:
    """Whether an end replaces one that it clashes with."""
    if new is old and new >= Evidence.ROUNDED:
        raise Contradiction(clash)
    log.warning("%s: the end with more evidence stays", clash)
    return new > old


class Contradiction(RuntimeError):
    """A proved end lies above a witness that is one over the reals: something is wrong, and neither may be reported."""
