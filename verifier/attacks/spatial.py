"""Rotations and shifts as an attack: Engstrom, Tran, Tsipras, Schmidt and Madry, arXiv:1712.02779.

Three numbers make an image fall, an angle and a shift down and right, so the loss need not be followed: a grid or k
random draws are tried. Left out: the paper's first-order variant (weaker there than either search), and its wider
images, from which a shift would uncover what lies outside instead of a fill.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attacks.base import Attack
from verifier.attacks.criterion import Criterion
from verifier.attacks.model import Gives
from verifier.attacks.run import Run
from verifier.attacks.threat import Threat
from verifier.attacks.warp import check_images, rotated

SEARCHES, FILLS = ("grid", "random"), ("zero", "border")


@dataclass(frozen=True, kw_only=True)
class Spatial(Attack):
    """angle: degrees either way. shift: pixels either way, down and right. search: grid (`angles` x `shifts` x `shifts`
    points, the paper's 31 x 5 x 5 by default, small moves first) or random (the worst of `draws`, 10 in the paper).
    fill: what a move uncovers, zero or the border's values.

    An example closes at its first success (early_stop), else the worst of all is kept. Bilinear interpolation.
    """

    name: ClassVar[str] = "spatial"
    norms: ClassVar[tuple[float, ...]] = (math.inf, 2.0, 1.0, 0.0)
    additive: ClassVar[bool] = False
    needs: ClassVar[Gives] = Gives.LABELS
    points: ClassVar[int] = 16

    angle: float = 30.0
    shift: float = 3.0
    search: str = "grid"
    angles: int = 31
    shifts: int = 5
    draws: int = 10
    fill: str = "zero"

    def __post_init__(self) -> None:
        if not (0 <= self.angle <= 180 and 0 <= self.shift < math.inf):
            raise ValueError(f"angle must lie in [0, 180] and shift be >= 0, got {self.angle} and {self.shift}")
        if self.search not in SEARCHES or self.fill not in FILLS:
            raise ValueError(f"search must be one of {', '.join(SEARCHES)} and fill one of {', '.join(FILLS)}, got "
                             f"{self.search!r} and {self.fill!r}")
        if min(self.angles, self.shifts, self.draws) < 1:
            raise ValueError(f"angles, shifts and draws must be >= 1, got {self.angles}, {self.shifts} and "
                             f"{self.draws}")

    def _check(self, gives: Gives, shape: tuple[int, ...] | None, x: Tensor, criterion: Criterion,
               threat: Threat) -> None:
        super()._check(gives, shape, x, criterion, threat)
        check_images(self.name, x)

    def propose(self, run: Run) -> None:
        everything = torch.arange(run.batch, device=run.x.device)
        if self.search == "grid":
            moves = self._grid().to(run.x.device).expand(run.batch, -1, 3)
        else:
            limit = torch.tensor([self.angle, self.shift, self.shift], dtype=torch.float64, device=run.x.device)
            moves = (2 * run.draws.uniform(everything, (self.draws, 3), torch.float64) - 1) * limit
        # Pieces of one size for every batch: an example ends at the same point alone and among others.
        for piece in moves.split(self.points, dim=1):
            i = run.open_examples()
            if not i.numel() or not piece.shape[1]:
                return
            owner = i.repeat_interleave(piece.shape[1])
            move = piece[i].flatten(0, 1)
            run.evaluate(rotated(run.x0[owner], move[:, 0], move[:, 1:], border=self.fill == "border"), owner)

    def _grid(self) -> Tensor:
        """Angle and shifts of every point but the original: float64 "K 3", from small moves to large ones."""
        angle, shift = _ticks(self.angle, self.angles), _ticks(self.shift, self.shifts)
        size = [max(self.angle, 1e-9), max(self.shift, 1e-9), max(self.shift, 1e-9)]
        points = [p for p in itertools.product(angle, shift, shift) if any(p)]
        points.sort(key=lambda p: sum((a / b) ** 2 for a, b in zip(p, size, strict=True)))
        return torch.tensor(points, dtype=torch.float64).view(-1, 3)


def _ticks(limit: float, count: int) -> list[float]:
    """`count` values from -limit to limit, evenly; only zero where either leaves no choice."""
    if limit == 0 or count == 1:
        return [0.0]
    return [limit * (2 * k - (count - 1)) / (count - 1) for k in range(count)]
