"""How a result leaves: the witness as a NumPy file, the verdict in the competition's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from verifier.strategy import Result
from verifier.verdict import Falsified, Reason


def save_witness(result: Result, path: Path) -> bool:
    """Write x (and y) of the counterexample; False, and no file, where there is none."""
    if not isinstance(result.verdict, Falsified):
        return False
    witness = result.verdict.witness
    with path.open("wb") as file:  # a file object, since NumPy would change the name
        if path.suffix == ".npy":
            np.save(file, witness.x, allow_pickle=False)
        else:
            np.savez(file, x=witness.x, y=witness.y)
    return True


def competition_result(result: Result) -> str:
    """`unsat`, `sat` with the assignment, `timeout` or `unknown`, as VNN-COMP reads it.

    Each float32 is written as the shortest decimal of its exact double value, so that it reads back unchanged.
    """
    if isinstance(result.verdict, Falsified):
        witness = result.verdict.witness
        values = [(f"X_{i}", v) for i, v in enumerate(witness.x.ravel())]
        values += [(f"Y_{i}", v) for i, v in enumerate(witness.y.ravel())]
        lines = "\n ".join(f"({name} {float(value)!r})" for name, value in values)
        return f"sat\n({lines})\n"
    if result.name == "verified":
        return "unsat\n"
    return "timeout\n" if result.reason is Reason.TIME_LIMIT else "unknown\n"
