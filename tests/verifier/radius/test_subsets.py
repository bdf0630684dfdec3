"""The l_0 radius held against every subset of features, by the rational oracle and by closed forms."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounds.graph import Graph
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from tests.bounds.networks import GraphBuilder
from tests.verifier.test_oracle import GraphReplayer, Truth, draw_graph
from verifier.deadline import Deadline
from verifier.property import Region, Row
from verifier.radius.balls import Balls
from verifier.radius.interval import RadiusInterval
from verifier.radius.subsets import METHODS, _Nodes, _Search, l0_radius
from verifier.verdict import Evidence

CLIP = (-1.0, 1.0)
ONE = Fraction(1)
NEAR = 0.02  # a margin so little below zero may be met by no float32 point


def exact(graph: Graph, x: np.ndarray, label: int, t: int, mask: np.ndarray) -> Fraction:
    """The least margin over all points with at most t <= 2 changed features."""
    centre = [Fraction(float(v)) for v in x.flatten()]
    row = Row(((label, ONE), (1 - label, -ONE)), (), Fraction(0))
    free = np.flatnonzero(mask.flatten()).tolist()
    least = None
    for moves in combinations(free, min(t, len(free))):
        region = Region(tuple(-ONE if i in moves else c for i, c in enumerate(centre)),
                        tuple(ONE if i in moves else c for i, c in enumerate(centre)))
        margin = Truth.of(graph, region).minimum(row)
        least = margin if least is None else min(least, margin)
    assert least is not None
    return least


@pytest.mark.parametrize(("kind", "examples"), [("dense", 25), ("residual", 15), ("conv", 3), ("pooling", 1)])
def test_the_ends_enclose_the_least_number_of_features(kind: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        random = np.random.default_rng(seed)
        graph = draw_graph(random, kind)
        x = (random.integers(-8, 9, graph.input_shape) / 8).astype(np.float32)
        label = int(GraphReplayer(graph).run(x[None])[0].argmax())
        mask = random.random(x.shape) < 0.75
        seen: list[RadiusInterval] = []
        found = l0_radius(graph, torch.from_numpy(x), label, clip=CLIP, replayer=GraphReplayer(graph),
                          mask=torch.from_numpy(mask), deadline=Deadline.starting_now(20.0), most=3,
                          attacks=("fmn",) if seed % 2 else (), on_interval=seen.append)
        free = int(mask.sum())
        margins = [exact(graph, x, label, t, mask) for t in range(3)]
        for t, margin in enumerate(margins):
            if margin <= 0:
                assert found.lower <= t, (t, float(margin))
            else:
                assert found.upper > t, (t, float(margin))
                if float(margin) > NEAR:
                    assert found.lower > t, "time is enough for so small networks"
            if float(margin) < -NEAR:
                assert found.upper <= t
        if found.lower == math.inf:
            assert free <= 3 and found.upper == math.inf
        if found.witness is not None:
            changed = found.witness.x.reshape(x.shape) != x
            assert int(changed.sum()) == found.upper and not bool((changed & ~mask).any())
            y = GraphReplayer(graph).run(found.witness.x.reshape(1, *x.shape))[0]
            assert y[label] <= y[1 - label] and bool((np.abs(found.witness.x) <= 1).all())
        ends = [(0.0, math.inf), *((s.lower, s.upper) for s in seen)]
        assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(ends))
    check()


def linear(weight: list[list[float]], bias: list[float]) -> Graph:
    made = GraphBuilder((len(weight[0]),), torch.float64)
    made.add(Linear(torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)))
    return made.graph()


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_classifier_needs_its_largest_gains(method: str) -> None:
    """One pass a level: many features cost no more than few."""
    n = 40
    weight = torch.rand(n, generator=torch.Generator().manual_seed(0)) + 0.01
    x = torch.rand(n, generator=torch.Generator().manual_seed(1))
    graph = linear([weight.tolist(), [0.0] * n], [0.0, 0.0])
    gains = (weight.double() * x.double()).sort(descending=True).values
    for t in (1, 3, 7):
        offset = float(gains[t:].sum()) + 0.4 * float(gains[t - 1])
        shifted = linear([weight.tolist(), [0.0] * n], [0.0, offset])
        found = l0_radius(shifted, x, 0, clip=(0.0, 1.0), replayer=GraphReplayer(shifted), method=method,
                          deadline=Deadline.starting_now(10))
        assert (found.lower, found.upper) == (t, t) and found.lower_evidence is Evidence.ROUNDED
    safe = l0_radius(graph, x, 0, clip=(0.01, 1.0), replayer=GraphReplayer(graph), attacks=(),
                     deadline=Deadline.starting_now(10))
    assert safe.lower == math.inf and safe.witness is None


def test_a_point_inside_the_range_counts() -> None:
    """A tent: neither end of the range is unsafe, the middle is."""
    made = GraphBuilder((2,), torch.float64)
    made.add(Linear(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64),
                    torch.tensor([-0.25, -0.5, -0.75], dtype=torch.float64)))
    made.add(Relu())
    made.add(Linear(torch.tensor([[-4.0, 8.0, -4.0], [0.0, 0.0, 0.0]], dtype=torch.float64),
                    torch.tensor([0.75, 0.0], dtype=torch.float64)))
    graph = made.graph()
    asked = {"clip": (0.0, 1.0), "replayer": GraphReplayer(graph), "attacks": (), "deadline": Deadline.starting_now(10)}
    found = l0_radius(graph, torch.tensor([0.0, 0.5]), 0, **asked)  # type: ignore[arg-type]
    assert (found.lower, found.upper) == (1, 1)
    assert found.witness is not None and 0.4 < float(found.witness.x[0]) < 0.6
    other = l0_radius(graph, torch.tensor([0.0, 0.5]), 0, mask=torch.tensor([False, True]), **asked)  # type: ignore[arg-type]
    assert other.lower == math.inf


def test_other_labels_have_the_radius_zero() -> None:
    graph = linear([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    found = l0_radius(graph, torch.tensor([0.25, 0.75]), 0, clip=(0.0, 1.0), replayer=GraphReplayer(graph))
    assert (found.lower, found.upper) == (0, 0)
    assert found.upper_evidence is Evidence.ROUNDED


def test_the_target_alone_counts() -> None:
    graph = linear([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [0.0, 0.9, 0.25])
    for target, wanted in ((None, 1), (1, 1), (2, 2)):
        found = l0_radius(graph, torch.tensor([0.5, 0.6]), 0, clip=(0.0, 1.0), replayer=GraphReplayer(graph),
                          target=target)
        assert (found.lower, found.upper) == (wanted, wanted), target


def test_limits_leave_what_holds() -> None:
    n = 12
    graph = linear([[1.0] * n, [0.0] * n], [0.0, 5.5])
    asked = {"clip": (0.0, 1.0), "replayer": GraphReplayer(graph)}
    x = torch.ones(n)
    assert l0_radius(graph, x, 0, most=3, attacks=(), **asked).lower == 3  # type: ignore[arg-type]
    late = l0_radius(graph, x, 0, deadline=Deadline.starting_now(1e-9), **asked)  # type: ignore[arg-type]
    assert (late.lower, late.upper) == (0, math.inf)
    known = RadiusInterval(lower=5, lower_by="elsewhere")
    found = l0_radius(graph, x, 0, known=known, **asked)  # type: ignore[arg-type]
    assert (found.lower, found.upper) == (7, 7)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_sets_hold_every_point_of_their_node_and_splits_lose_none(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, t = int(random.integers(2, 7)), int(random.integers(1, 4))
    graph = linear(random.normal(size=(2, n)).tolist(), [3.0, 0.0])
    x = torch.from_numpy(random.random(n))
    search = _Search(graph, Balls(x[None], torch.tensor([0]), clip=(0.0, 1.0)), GraphReplayer(graph), "crown",
                     Deadline(), lambda interval: None, RadiusInterval())
    nodes = search.boxed(_Nodes(torch.full((1, t), -1), x.new_zeros(1, t), x.new_zeros(1, t),
                                (search.low == search.high).unsqueeze(0), torch.ones(1, 1, dtype=torch.bool)))
    points = x.repeat(50, 1)
    for p in points:
        moved = torch.from_numpy(random.permutation(n)[:t])
        p[moved] = torch.from_numpy(random.choice([0.0, 1.0, random.random()], len(moved)))
    for _ in range(4):
        parts = [nodes.take(torch.tensor([m])) for m in range(len(nodes))]
        for p in points:
            assert any(bool(search.sets(part).contains(p[None])[0]) for part in parts)
        following = []
        for part in parts:
            A = torch.from_numpy(random.normal(size=(1, n)))
            least = search.least(part, A)
            assert int((least != x).sum()) <= t and bool(search.sets(part).contains(least)[0])
            split = search.bisected(part, A) if bool(search.is_box(part).all()) else search.split(part, A)
            assert split is not None
            following.append(split)
        nodes = _Nodes.joined(following)


@pytest.mark.parametrize(("change", "says"), [({"method": "ibp"}, "method must be one of"),
                                              ({"label": 2}, "labels from 0 to 1"), ({"clip": (0.5, 1.0)}, "outside")])
def test_wrong_use_is_told(change: dict[str, object], says: str) -> None:
    graph = linear([[1.0], [0.0]], [0.0, 0.0])
    with pytest.raises(ValueError, match=says):
        l0_radius(graph, torch.tensor([0.25]), **{"label": 0, "clip": (0.0, 1.0), "replayer": GraphReplayer(graph),
                                                 **change})  # type: ignore[arg-type]


def test_points_that_rounding_takes_out_of_the_range_are_none_over_the_reals() -> None:
    """The float32 nearest to 0.1 lies above it; unsafe is what lies above 0.1 alone."""
    end = float(np.float32(0.1))
    build = GraphBuilder((1,), torch.float32)
    build.add(Linear(torch.tensor([[0.0], [8.0]]), torch.tensor([-5e-9, -8 * end])))
    graph = build.graph("edge")
    ball = Balls(torch.tensor([[0.05]]), torch.tensor([0]), clip=(0.0, 0.1))
    search = _Search(graph.to(dtype=torch.float64), ball, GraphReplayer(graph), "crown", Deadline(),
                     lambda interval: None, RadiusInterval())
    assert not search.propose(torch.tensor([0.1], dtype=torch.float64), "given")


def test_a_fixed_feature_that_is_no_float32_proves_nothing_over_the_reals() -> None:
    build = GraphBuilder((2,), torch.float32)
    build.add(Linear(torch.eye(2), torch.zeros(2)))
    graph = build.graph("eye")
    found = l0_radius(graph, torch.tensor([0.7, 0.2], dtype=torch.float64), 0, clip=(0.0, 1.0),
                      replayer=GraphReplayer(graph), mask=torch.tensor([True, False]))
    assert found.upper == 1 and found.upper_evidence is Evidence.FLOAT
