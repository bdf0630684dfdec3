"""The one form of "within r of an input" and of "outputs in Y" that all questions share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bounds.graph import Graph
from bounds.sets import InputSet
from verifier.exact import Number
from verifier.property import Branch, Property, Region, Row, Terms
from verifier.radius.balls import Balls


def around(x: Tensor | NDArray[np.floating], radius: float, *, norm: float = math.inf,
           clip: tuple[float, float] | None = None, mask: Tensor | NDArray[np.bool_] | None = None) -> InputSet:
    """The outward hull, in float64, of the ball of `radius` around x "*input": every real point of the clip range that
    differs from x by at most that in `norm` (inf, 2 or 1), on features that may move (mask "*input"), lies inside."""
    points = torch.as_tensor(x).detach().double().unsqueeze(0)
    free = None if mask is None else torch.as_tensor(mask, dtype=torch.bool)
    balls = Balls(points, torch.zeros(1, dtype=torch.long, device=points.device), norm, clip, free)
    return balls.sets(torch.tensor([radius], dtype=torch.float64, device=points.device))


def checked(graph: Graph, input_set: InputSet) -> tuple[Graph, InputSet]:
    """Network and set in float64. Raises ValueError where they do not fit, or where there are several sets."""
    if input_set.batch != 1:
        raise ValueError(f"expected one input set, got {input_set.batch}")
    if input_set.shape != graph.input_shape:
        raise ValueError(f"the input set has shape {input_set.shape}, the network's input {graph.input_shape}")
    return graph.to(dtype=torch.float64), input_set.to(dtype=torch.float64, device=graph.device)


@dataclass(frozen=True, eq=False)
class Polytope:
    """The outputs y (flat) with `C y <= d`: C "R m", d "R", taken exactly."""

    C: Tensor
    d: Tensor

    def __post_init__(self) -> None:
        if self.C.dim() != 2 or self.d.shape != self.C.shape[:1] or not self.C.shape[0]:
            raise ValueError(f'expected C "R m" and d "R", got {tuple(self.C.shape)} and {tuple(self.d.shape)}')
        if not bool(torch.isfinite(self.C).all() and torch.isfinite(self.d).all()):
            raise ValueError("C and d must be finite")

    @staticmethod
    def box(lower: Tensor, upper: Tensor) -> Polytope:
        """`lower <= y <= upper`, both "m"."""
        eye = torch.eye(len(lower), dtype=lower.dtype)
        return Polytope(torch.cat([eye, -eye]), torch.cat([upper, -lower]))

    def met_over(self, input_set: InputSet) -> Property:
        """Unsafe where an output of the set lies inside."""
        rows = tuple(Row(terms, (), bound) for terms, bound in self._rows)
        return self._property(input_set, (rows,), "an output region")

    def left_over(self, input_set: InputSet) -> Property:
        """Unsafe where an output of the set lies outside."""
        rows = tuple((Row(tuple((i, -c) for i, c in terms), (), -bound, strict=True),) for terms, bound in self._rows)
        return self._property(input_set, rows, "leaving an output region")

    @property
    def _rows(self) -> list[tuple[Terms, Fraction]]:
        return [(tuple((i, Fraction(c)) for i, c in enumerate(row) if c), Fraction(d))
                for row, d in zip(self.C.double().tolist(), self.d.double().tolist(), strict=True)]

    def _property(self, input_set: InputSet, ors: tuple[tuple[Row, ...], ...], source: str) -> Property:
        region = region_of(input_set)
        return Property(tuple(Branch(region, rows) for rows in ors), len(region.exact_lower), self.C.shape[1], source)


def region_of(input_set: InputSet) -> Region:
    """One set as properties state it: its floats, exactly; a fixed one that is no float32 is the nearest."""
    if input_set.batch != 1 or input_set.scale is not None:
        raise ValueError(f"expected one set without scales, got {input_set.batch}"
                         f"{'' if input_set.scale is None else ' with scales'}")
    lower, upper = _numbers(input_set.lower), _numbers(input_set.upper)
    fixed = (input_set.lower == input_set.upper).flatten().cpu().numpy()
    if input_set.centre is None or input_set.radius is None:
        region = Region(lower, upper, nearest=fixed)
    else:
        region = Region(lower, upper, input_set.centre.flatten().double().cpu().numpy(),
                        Fraction(float(input_set.radius)), input_set.p, fixed)
    if (beyond := region.beyond_float32) is not None:
        raise ValueError(f"input {beyond} can leave the range of float32")
    return region


def _numbers(ends: Tensor) -> tuple[Number, ...]:
    values = ends.flatten().double().tolist()
    exact = {v: Fraction(v) for v in set(values)}  # an image has few distinct ones, and rationals are slow
    return tuple(exact[v] for v in values)
