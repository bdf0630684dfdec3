"""Tilted chords with their rounding accounted for: against rationals, and in float32 against float64."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.graph.reduce import Reduced, reduce_to
from bounds.interval import Interval
from bounds.rounding import priced, sum_down
from bounds.tilted import Chain, Lines, Parameters, Tilted, Tilts, _inner, _value
from bounds.tilted_rounding import Sizes, missing, price
from tests.bounds.networks import intervals_by, random_box, random_graph
from tests.bounds.rational import Rising, exact, float_of


def reduced_of(network: Rising) -> Reduced:
    return reduce_to(network.graph, network.known, Interval(network.sets.lower, network.sets.upper))


def lower_of(network: Rising, iterations: int) -> Tensor:
    reduced = reduced_of(network)
    never = torch.full((4,), torch.inf, dtype=torch.float64)
    found = Tilted(iterations=iterations).bound(reduced, network.sets, reduced.intervals(network.known), network.C,
                                                network.offset, never, network.D)
    assert found is not None
    return found.lower


@pytest.mark.parametrize("folds", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_bounds_never_exceed_the_exact_minimum(layers: int, folds: bool) -> None:
    """Where numbers of a million cancel, evaluation in float64 alone is often above it."""
    wrong = {True: 0, False: 0}
    loss = 0.0
    for seed in range(12):
        network = Rising(seed, layers, folds=folds)
        found = {}
        for pays in (True, False):
            with priced(pays):
                lower = lower_of(network, 1 + seed % 3)
            wrong[pays] += network.above(lower)
            found[pays] = lower
        loss = max(loss, float((found[False] - found[True]).max()))
    assert wrong[True] == 0
    assert wrong[False] > 4
    assert 0 < loss < 1e-6, "the price is of the size of what cancels"


@pytest.mark.parametrize("layers", [0, 1], ids=["outputs", "one layer"])
def test_every_sum_pays_for_itself(layers: int) -> None:
    """Rows without an input part of their own, whose cancelling sums are those of the outputs or of one layer alone."""
    wrong = {True: 0, False: 0}
    for seed in range(30):
        network = Rising(seed, layers, folds=layers == 0)
        reduced = reduced_of(network)
        never = torch.full((4,), torch.inf, dtype=torch.float64)
        least = exact(network.C) @ network.ends[1][-1]
        if layers == 0:  # the numbers as stored are what is asked about
            reduced = replace(reduced, error=0 * reduced.error)
            least = exact(network.C) @ (exact(reduced.weights[0]) @ network.high + exact(reduced.bias))
        offset = -float_of(least)  # what is left is small
        least = least + exact(offset)
        for pays in (True, False):
            with priced(pays):
                found = Tilted(iterations=1).bound(reduced, network.sets, reduced.intervals(network.known), network.C,
                                                   offset, never)
            assert found is not None
            wrong[pays] += sum(Fraction(v) > m for v, m in zip(found.lower.tolist(), least, strict=True))
    assert wrong[True] == 0
    assert wrong[False] > 10


@pytest.mark.parametrize("group", [0, 1, 2], ids=["first layer", "second layer", "outputs"])
def test_what_the_reduction_was_off_is_paid(group: int) -> None:
    """A network whose rows of one group lie by their whole error beside what is stored, on the side that lowers it."""
    off = 1e-3
    wrong = {True: 0, False: 0}
    for seed in range(10):
        network = Rising(seed, 2, folds=False, width=1)
        reduced = reduced_of(network)
        rows = [slice(0, 1), slice(1, 2), slice(2, 4)][group]
        error = torch.zeros_like(reduced.error)
        error[rows] = off
        moved = reduced.bias + error
        ends = [states(replace(reduced, bias=moved), x) for x in (network.sets.lower[0], network.sets.upper[0])]
        intervals = {layer.reduced: Interval(ends[0][k].view(1, 1), ends[1][k].view(1, 1))
                     for k, layer in enumerate(reduced.layers)}
        least = network.C @ ends[1][2:] + network.D @ network.sets.upper[0] + network.offset
        never = torch.full((4,), torch.inf, dtype=torch.float64)
        for pays in (True, False):
            asked = replace(reduced, error=error if pays else 0 * error)
            found = Tilted(iterations=1).bound(asked, network.sets, intervals, network.C, network.offset, never,
                                               network.D)
            assert found is not None
            wrong[pays] += int((found.lower > least + 1e-7).sum())
    assert wrong[True] == 0
    assert wrong[False] > 4


def states(reduced: Reduced, x: Tensor) -> Tensor:
    """"T": every row at one point."""
    state, found = reduced.weights[0] @ x + reduced.bias, []
    for M in reduced.weights[1:]:
        size = M.shape[1]
        found.append(state[:size])
        state = state[size:] + M @ state[:size].clamp(min=0)
    return torch.cat([*found, state])


def random_parameters(lines: Lines, tilts: dict[int, Tilts], sides: list[Tensor], generator: torch.Generator
                      ) -> Parameters:
    """Slopes, tilts and multipliers at random, valid ones, in the dtype of the lines."""
    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(lines.s[0])
    found: Parameters = {}
    for k, s in enumerate(lines.s):
        found["slope", k, k] = torch.lerp(lines.low[k], lines.high[k], uniform(*s.shape))
        found["beta", k, k] = sides[k] * uniform(*s.shape)
        if k in tilts:
            found["tilt", k, k] = uniform(len(s), len(tilts[k].support)) - 0.5
            for i in range(k):
                shape = len(s), 2 * len(tilts[k].at), lines.s[i].shape[1]
                low, high = lines.low[i].unsqueeze(1), lines.high[i].unsqueeze(1)
                found["inner", k, i] = low + (high - low) * uniform(*shape)
                found["inner beta", k, i] = sides[i].unsqueeze(1) * uniform(*shape)
    return found


@pytest.mark.parametrize("kind", ["dense", "conv", "residual"])
def test_single_precision_with_its_price_stays_below_double_precision(kind: str) -> None:
    """The same numbers at the same parameters: what float32 proves, rounding paid, float64 confirms; of planes too."""
    wrong, planes = {True: 0, False: 0}, {True: 0, False: 0}
    for seed in range(25):
        graph = random_graph(seed, kind, "Relu")
        box = random_box(graph, seed, 1, 0.7)
        known = {i: x for i, x in intervals_by("crown", graph, box).items() if i in graph.relaxed_inputs}
        reduced = reduce_to(graph, known, Interval(box.lower, box.upper))
        if len(reduced.layers) < 2:
            continue
        narrow = Chain.of(reduced, box, torch.float32)
        narrow = replace(narrow, error=torch.zeros_like(narrow.error))  # its numbers are what is asked about
        wide = Chain(*(t.double() if isinstance(t, Tensor) else t for t in vars(narrow).values()))
        wide = replace(wide, M=tuple(M.double() for M in narrow.M))
        generator = torch.Generator().manual_seed(seed)
        ends = reduced.intervals(known)
        intervals = [ends[layer.reduced].map(lambda t: t.float().expand(3, -1).clone()) for layer in reduced.layers]
        sides = []
        for x in intervals:
            side = torch.randint(-1, 2, x.lower.shape, generator=generator).float()
            x.lower[side > 0], x.upper[side < 0] = 0.0, 0.0
            sides.append(side)
        lines = Lines.of(intervals, torch.float32)
        doubled = Lines(*([t if t.dtype == torch.bool else t.double() for t in part] for part in vars(lines).values()))
        tilts = {}
        for k in range(1, len(intervals)):
            w = narrow.before(k)
            tilts[k] = Tilts(torch.arange(len(w)), w, w.abs().amax(1, keepdim=True), torch.arange(w.numel()))
        parameters = random_parameters(lines, tilts, sides, generator)
        m, n = len(narrow.e) - narrow.hidden, len(narrow.centre)
        C, offset, D = (torch.randn(3, size, generator=generator) for size in (m, 1, n))
        asked = C, offset[:, 0], D
        exactly = (wide, doubled, {k: replace(t, w=t.w.double(), size=t.size.double()) for k, t in tilts.items()},
                   {key: p.double() for key, p in parameters.items()})
        truth = _value(*exactly, *(t.double() for t in asked))[0]
        value, _, _, used = _value(narrow, lines, tilts, parameters, *asked, traced=True)
        for k, u in used.items():
            if u.inner is not None and u.c is not None:
                size = Sizes.of(narrow, lines)
                short = missing(narrow, lines, size, parameters, k, tilts[k].at, u.inner)
                # The plane's g as float32 has it, its c by float64.
                rows = u.inner.rows[:, :len(tilts[k].at)].double()
                rows = torch.cat([rows, rows - exactly[2][k].w], 1)
                below = _inner(wide, doubled, rows, u.inner.constant.double(),
                               [exactly[3]["inner", k, i] for i in range(k)],
                               [exactly[3]["inner beta", k, i] for i in range(k)])
                c = (-below).view(len(rows), 2, -1).amax(1)
                planes[True] += int((u.c.double() + short.double() < c).sum())
                planes[False] += int((u.c.double() < c).sum())
        paid = sum_down(value, -price(narrow, lines, tilts, parameters, *asked, used))
        wrong[True] += int((paid.double() > truth).sum())
        wrong[False] += int((value.double() > truth).sum())
    assert wrong[True] == planes[True] == 0
    assert wrong[False] > 10 and planes[False] > 10
