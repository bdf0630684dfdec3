"""A planted fault: one exact replacement in the engine's source that makes some answer wrong or looser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "unsound": "`verified` can be wrong, or its margin: a bound, a set or a search loses points",
    "rounding": "evidence `rounded` can be wrong: what rounding may do is not paid for, or not asked about",
    "witness": "`falsified` can be wrong, or the question is another one",
    "attack": "an attack's success is none, or its distance, count or random number is wrong",
    "proof": "a proof file that proves nothing is accepted, or a good one refused",
    "training": "a network is trained by another loss, attack, schedule or data than its record says",
    "looser": "nothing is wrong, less is proved",
}


@dataclass(frozen=True)
class Fault:
    """In `file` the text `old`, which stands there once, becomes `new`. tests: those that are to notice, run first."""

    name: str
    file: str
    kind: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.old == self.new or not self.tests:
            raise ValueError(f"{self.name}: a fault changes something, and some test is to notice")

    @property
    def module(self) -> str:
        """The module that it stands in."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def trouble(self, root: Path) -> str:
        """'' if the old text stands in the source exactly once, else a sentence."""
        path = root / self.file
        if not path.is_file():
            return f"{self.name}: there is no {self.file}"
        times = path.read_text("utf-8").count(self.old)
        return "" if times == 1 else f"{self.name}: {self.file} holds the old text {times} times, expected once"

    def plant(self, root: Path) -> None:
        """Change the source below `root`."""
        path = root / self.file
        path.write_text(path.read_text("utf-8").replace(self.old, self.new), "utf-8")
