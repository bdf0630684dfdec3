"""What is said about each example, and about all of them: shares with their intervals, and what stayed open and why.

A record's `reason` says why an example is not certified. Three kinds are kept apart: the network's fault
(misclassified, counterexample; a smoothed classifier abstains, or its radius is too small), what stays undecided (time
limit, incomplete, rounding), and trouble of the verifier (memory, numerical, unsupported, error), which is told by its
name and never counted as undecided.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from certify.evaluation.asked import Asked
from verifier.attacks.base import norm_name
from verifier.verdict import Evidence, Reason

Record = dict[str, Any]

MISCLASSIFIED, COUNTEREXAMPLE = "misclassified", "counterexample"
ABSTAINED, SMALL_RADIUS = "abstained", "small radius"
CONTRADICTION, FLOAT32_ONLY = "contradiction", "float32 only"
UNDECIDED = tuple(r.value for r in (Reason.TIME_LIMIT, Reason.INCOMPLETE, Reason.ROUNDING))
TROUBLE = tuple(r.value for r in (Reason.MEMORY, Reason.NUMERICAL, Reason.UNSUPPORTED, Reason.ERROR))
REASONS = (MISCLASSIFIED, COUNTEREXAMPLE, ABSTAINED, SMALL_RADIUS, *UNDECIDED, *TROUBLE, FLOAT32_ONLY, CONTRADICTION)
Z = 1.959963984540054  # of a normal: 95 %


def wilson(hits: int, count: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share of which `hits` of `count` were seen; None of none."""
    if not count:
        return None
    share, spread = hits / count, Z * Z / count
    middle = share + spread / 2
    width = math.sqrt(spread * share * (1 - share) + (spread / 2) ** 2)
    low, high = (middle - width) / (1 + spread), (middle + width) / (1 + spread)
    return (0.0 if hits == 0 else low, 1.0 if hits == count else high)


def is_final(record: Record, time_limit_s: float) -> bool:
    """Whether a stored answer stands in a run with this time limit: what stayed open for less is asked again."""
    return record["reason"] not in (*UNDECIDED, *TROUBLE) or record["time_limit_s"] >= time_limit_s


def summary(records: list[Record], columns: Sequence[str], facts: dict[str, Any], left: int = 0) -> dict[str, Any]:
    """Shares of the examples that stand, each with its interval; how many for which reason; the least evidence.
    columns: of the attacks; facts: what was asked.

    left: examples that are not done. They are no random part, as the easy ones end first, so that shares of the others
    would say nothing of all. Here they stand, but are not certified: `certified` is at least its share once all are
    done, the others at most theirs, and there are no intervals.
    """
    names = ("clean", *columns, "attacked", "certified")
    hits = {c: None if any(r[c] is None for r in records) else sum(r[c] for r in records)
            + (left if c != "certified" else 0) for c in names}
    count, total = len(records), len(records) + left
    shares = {c: None if h is None or not count else h / total for c, h in hits.items()}
    reasons = Counter(r["reason"] for r in records if r["reason"] is not None)
    certified = [Evidence[r["evidence"].upper()] for r in records if r["certified"]]
    return {
        "summary": True, "count": count, **{c: shares[c] for c in ("clean", "attacked", "certified")},
        "attacks": {c: shares[c] for c in columns},
        "intervals": {c: None if h is None or left else wilson(h, count) for c, h in hits.items()},
        "counts": {c: h for c, h in hits.items() if h is not None} | {r: reasons[r] for r in REASONS if reasons[r]},
        "left": left, "undecided": sum(reasons[r] for r in UNDECIDED), "trouble": sum(reasons[r] for r in TROUBLE),
        "by": dict(Counter(r["by"] for r in records if r["certified"]).most_common()), **facts,
        "evidence": min(certified).name.lower() if certified else None}


def as_facts(asked: Asked) -> dict[str, Any]:
    """What was asked, for a summary."""
    return {"eps": asked.eps, "norm": norm_name(asked.norm), "clip": asked.clip and list(asked.clip),
            "method": asked.method, "claim": asked.claim}


def table(total: dict[str, Any]) -> list[str]:
    """The shares as people read them, a line a column: with intervals, or which way they go while some are left."""
    names = ["clean", *total["attacks"], *([] if total["attacked"] is None else ["attacked"]),
             *([] if total["certified"] is None else ["certified"])]
    width = max(len(name) for name in names)
    every = total["count"] + total["left"]
    lines = [f"{'accuracy':{width}s}  {'share':>8s}  {'examples':>14s}  "
             f"{'once all are done' if total['left'] else '95 % interval'}"]
    for name in names:
        hits, interval = total["counts"].get(name), total["intervals"][name]
        if hits is None or not total["count"]:
            lines.append(f"{name:{width}s}  {'-':>8s}")
            continue
        side = "at least" if name == "certified" else "at most"
        lines.append(f"{name:{width}s}  {100 * hits / every:6.2f} %  {hits:5d} of {every:5d}  " + (
            side if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"))
    return lines
