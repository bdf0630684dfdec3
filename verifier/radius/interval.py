"""What is known of a safe radius: an interval that only shrinks, each end with its evidence and its method."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from verifier.verdict import Claim, Evidence
from verifier.witness import Witness


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
        """With a better lower end; a worse one changes nothing. Never above the upper end: where they clash, the caller
        has to find out which is wrong (`Contradiction`)."""
        if not lower > self.lower:
            return self
        if lower > self.upper:
            raise Contradiction(f"{by} proves a safe radius of {lower!r}, but {self.upper_by} has a witness at "
                                f"{self.upper!r}")
        return replace(self, lower=lower, lower_evidence=evidence, lower_by=by)

    def lowered(self, upper: float, evidence: Evidence, by: str, witness: Witness | None) -> RadiusInterval:
        """With a nearer witness; a further one changes nothing."""
        if not upper < self.upper:
            return self
        if upper < self.lower:
            raise Contradiction(f"{by} has a witness at {upper!r}, but {self.lower_by} proves a safe radius of "
                                f"{self.lower!r}")
        return replace(self, upper=upper, upper_evidence=evidence, upper_by=by, witness=witness)


class Contradiction(RuntimeError):
    """A proved end lies above a witness: one of the two is wrong, and neither may be reported."""
