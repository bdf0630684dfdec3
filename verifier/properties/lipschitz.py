"""The Lipschitzian property: how fast can outputs change over an input set, and is that at most d?

The constant here is that of all pairs of points, `sup |F(x) - F(y)| / ||x - y||`, which is never below the one that
takes y at the centre alone. It is certified from above by enclosures of gradients (or by what else is asked), estimated
by sampled gradients, and bounded from below by pairs of points.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.sets import InputSet
from verifier.deadline import Deadline
from verifier.lipschitz.certified import Kept, certified_constants
from verifier.lipschitz.constant import Constant
from verifier.lipschitz.functions import OutputFunction
from verifier.lipschitz.seen import SAMPLES, Pair, steepest_pair, steepest_sample
from verifier.properties.reach import as_functions
from verifier.properties.region import checked
from verifier.verdict import Claim, Evidence, Reason, Unknown, Verified


@dataclass(frozen=True, eq=False)
class TooSteep:
    """The constant exceeds d: between the points of the pair function number `function` has a larger slope. `upper` < 0
    is d less that slope."""

    pair: Pair
    function: int
    upper: float

    @property
    def evidence(self) -> Evidence:
        return self.pair.evidence


@dataclass(frozen=True, eq=False)
class LipschitzConstant:
    """Of every function over the set: `pairs[k].slope <= constant <= certified[k].value`; estimate[k] is the largest
    sampled gradient, which proves nothing. verdict: about `constant <= d` for all functions (None: no d was given)."""

    functions: tuple[OutputFunction, ...]
    certified: tuple[Constant, ...]
    estimate: tuple[float, ...]
    pairs: tuple[Pair | None, ...]
    norm: float
    time_s: float
    verdict: Verified | TooSteep | Unknown | None = None

    @property
    def largest(self) -> Constant:
        """The certified constant of all functions together."""
        return max(self.certified, key=lambda constant: constant.value)

    @property
    def method(self) -> str:
        return self.largest.method

    @property
    def evidence(self) -> Evidence:
        """Of the certified constants: of the weakest."""
        return min(constant.evidence for constant in self.certified)


def lipschitz_constant(graph: Graph, input_set: InputSet, d: float | None = None, *, norm: float = math.inf,
                       functions: Sequence[OutputFunction] | Tensor | None = None,
                       methods: Sequence[str] = ("jacobian",), samples: int = SAMPLES, time_limit_s: float = 60.0,
                       seed: int = 0, kept: Kept | None = None) -> LipschitzConstant:
    """Constants of every output (functions None), of rows "K m" of outputs, or of functions of them, over one convex
    set, for distances in `norm` (inf, 2 or 1).

    methods: of `verifier.lipschitz.certified.METHODS`, the least of what they prove counts. d: is every constant at
    most d? Verified where that is certified, TooSteep where a pair of points refutes it (values enclosed in float64),
    else Unknown. kept: an empty dictionary that several questions about one graph share, so that constants which hold
    everywhere are computed once.
    """
    begin = time.monotonic()
    graph, input_set = checked(graph, input_set)
    if d is not None and not 0 <= d < math.inf:
        raise ValueError(f"d must be a number >= 0, got {d}")
    asked = as_functions(functions, math.prod(graph.output_shape))
    deadline = Deadline.starting_now(time_limit_s)
    generator = torch.Generator(input_set.device).manual_seed(seed)
    certified = certified_constants(graph, input_set, asked, norm=norm, methods=methods, deadline=deadline,
                                    kept=kept)
    estimate, pairs = [], []
    for function in asked:
        at = steepest_sample(graph, input_set, function, norm=norm, samples=samples, generator=generator)
        estimate.append(at.gradient)
        pairs.append(steepest_pair(graph, input_set, function, at, norm=norm))
    verdict = None if d is None else _verdict(d, certified, pairs, deadline)
    return LipschitzConstant(asked, tuple(certified), tuple(estimate), tuple(pairs), norm, time.monotonic() - begin,
                             verdict)


def _verdict(d: float, certified: list[Constant], pairs: list[Pair | None], deadline: Deadline
             ) -> Verified | TooSteep | Unknown:
    lower = d - max(constant.value for constant in certified)
    if lower >= 0:
        return Verified(lower, min(constant.evidence for constant in certified), Claim.REAL)
    slopes = [0.0 if pair is None else pair.slope for pair in pairs]
    steepest = max(range(len(pairs)), key=slopes.__getitem__)
    pair, upper = pairs[steepest], d - slopes[steepest]
    if pair is not None and upper < 0:
        return TooSteep(pair, steepest, upper)
    return Unknown(Reason.TIME_LIMIT if deadline.passed() else Reason.INCOMPLETE, lower, upper)
