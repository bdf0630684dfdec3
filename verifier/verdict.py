"""The answer to a question: verified, falsified or unknown, each with its evidence and its reason."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verifier.witness import Witness


class Evidence(enum.IntEnum):
    """How far a bound can be trusted, ordered within one claim."""

    ESTIMATE = 0  # sampling, an estimated constant, smoothing
    FLOAT = 1     # ordinary floating point, a solver's word
    ROUNDED = 2   # every rounding error accounted for
    CHECKED = 3   # the independent checker accepted the proof


class Claim(enum.Enum):
    """About which function the answer speaks."""

    REAL = "real"        # the stored network over the reals
    FLOAT32 = "float32"  # the ONNX graph node by node in IEEE float32


class Reason(enum.Enum):
    """Why a question stayed open; `remedy` says what to try."""

    INCOMPLETE = "incomplete"
    TIME_LIMIT = "time limit"
    MEMORY = "memory"
    UNSUPPORTED = "unsupported"
    NUMERICAL = "numerical"
    ROUNDING = "rounding"
    INTERRUPTED = "interrupted"
    ERROR = "error"

    @property
    def remedy(self) -> str:
        return _REMEDY[self]


_REMEDY = {
    Reason.INCOMPLETE: "the bounds are too loose: try a tighter method or a smaller input set",
    Reason.TIME_LIMIT: "the deadline passed: give more with --time-limit",
    Reason.MEMORY: "memory ran out: use a machine with more, or a cheaper method",
    Reason.UNSUPPORTED: "the network has an operator without sound bounds: see the message",
    Reason.NUMERICAL: "bounds overflowed or became NaN: rescale the network or use float64",
    Reason.ROUNDING: "verified in ordinary floating point only: ask for no more with --evidence float",
    Reason.INTERRUPTED: "stopped by the user: run it again, a sweep with --resume",
    Reason.ERROR: "an unexpected error: see the message and report it",
}


@dataclass(frozen=True)
class Verified:
    """The unsafe set is not reachable. `lower` > 0 bounds the margin from below."""

    lower: float
    evidence: Evidence = Evidence.FLOAT
    claim: Claim = Claim.REAL


@dataclass(frozen=True)
class Falsified:
    """A witness reaches the unsafe set; `upper` <= 0 is the margin there. `claim`: about which function that was shown;
    evidence is ROUNDED where an enclosure over the reals agrees, or where the claim is what was run."""

    witness: Witness
    upper: float
    lower: float = float("-inf")
    evidence: Evidence = Evidence.FLOAT
    claim: Claim = Claim.FLOAT32


@dataclass(frozen=True)
class Unknown:
    """Neither was shown. The margin lies in [lower, upper] as far as known."""

    reason: Reason
    lower: float = float("-inf")
    upper: float = float("inf")
    detail: str = ""


Verdict = Verified | Falsified | Unknown
