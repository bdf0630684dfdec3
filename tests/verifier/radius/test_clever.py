"""CLEVER: the fit held against scipy's, scores of networks whose gradients are known, and what it cannot see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bounds.graph import Graph
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu
from tests.bounds.networks import GraphBuilder
from verifier.deadline import Deadline
from verifier.radius.balls import Balls
from verifier.radius.clever import Clever
from verifier.radius.weibull import fit
from verifier.verdict import Evidence

NORMS = [math.inf, 2.0, 1.0]
QUICK = Clever(batches=40, samples=16, resamples=20)


def layers(*weights: tuple[list[list[float]], list[float]]) -> Graph:
    made = GraphBuilder((len(weights[0][0][0]),), torch.float64)
    for weight, bias in weights:
        if len(made.nodes) > 1:
            made.add(Relu())
        made.add(Linear(torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)))
    return made.graph()


def dense(seed: int) -> Graph:
    random = torch.Generator().manual_seed(seed)
    draw = [torch.randn(*size, generator=random).tolist() for size in ((12, 4), (12,), (3, 12), (3,))]
    return layers((draw[0], draw[1]), (draw[2], draw[3]))


def labelled(graph: Graph, count: int, norm: float = math.inf) -> Balls:
    x = torch.rand(count, *graph.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Balls(x, graph(x).argmax(1), norm)


# ---------------------------------------------------------------------- the fit


@settings(max_examples=10, deadline=None)
@given(shape=st.floats(1.5, 6), location=st.floats(-2, 5), scale=st.floats(0.01, 10), seed=st.integers(0, 1000))
def test_the_likelihood_is_at_least_as_large_as_that_of_scipy(shape: float, location: float, scale: float, seed: int
                                                              ) -> None:
    from scipy.stats import weibull_max
    values = weibull_max.rvs(shape, location, scale, size=60, random_state=seed)
    found = fit(torch.from_numpy(values)[None])
    if not bool(found.converged):
        return
    ours = float(found.shape), float(found.location), float(found.scale)
    theirs = weibull_max.fit(values)
    assert ours[1] >= values.max()
    if theirs[0] >= 1:
        assert weibull_max.logpdf(values, *ours).sum() >= weibull_max.logpdf(values, *theirs).sum() - 1e-3
    from scipy.stats import kstest
    assert float(found.p_value) == pytest.approx(kstest(values, weibull_max(*ours).cdf).pvalue, abs=1e-9)


def test_the_location_of_many_values_is_found() -> None:
    from scipy.stats import weibull_max
    values = torch.from_numpy(weibull_max.rvs(3.0, 2.0, 0.5, size=(4, 2000), random_state=0))
    found = fit(values)
    assert bool(found.converged.all()) and bool((found.p_value > 0.05).all())
    assert found.location.tolist() == pytest.approx([2.0] * 4, abs=0.05)
    assert torch.equal(fit(values[1:2]).location, found.location[1:2])


def test_equal_values_are_the_location_and_bad_fits_have_the_largest() -> None:
    found = fit(torch.tensor([[3.0] * 20, [0.0] * 20], dtype=torch.float64))
    assert found.location.tolist() == [3.0, 0.0] and bool(found.constant.all())
    two = torch.tensor([1.0] * 10 + [2.0] * 10, dtype=torch.float64)
    found = fit(two[None])
    assert not bool(found.constant) and float(found.p_value) < 0.05
    light = torch.from_numpy(np.random.default_rng(0).gumbel(size=400))  # no largest value
    found = fit(light[None])
    if not bool(found.converged):
        assert float(found.location) == float(light.max()) and float(found.p_value) == 0.0


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize("norm", NORMS)
def test_the_score_of_a_linear_classifier_is_its_radius(norm: float) -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0], [-1.0, 0.0, 2.0]], dtype=torch.float64)
    graph = layers((weight.tolist(), [0.0, 0.5, 0.25]))
    balls = labelled(graph, 3, norm)
    found = QUICK.scores(graph, balls, 10.0)
    y = graph(balls.x)
    q = {math.inf: 1.0, 2.0: 2.0, 1.0: math.inf}[norm]
    for i, label in enumerate(balls.label.tolist()):
        exact = min(float((y[i, label] - y[i, j]) / torch.linalg.vector_norm(weight[label] - weight[j], ord=q))
                    for j in range(3) if j != label)
        assert float(found.score[i]) == pytest.approx(exact)
        assert float(found.low[i]) == float(found.score[i]) == float(found.high[i])
    assert not bool(found.warning.any()) and found.evidence is Evidence.ESTIMATE
    assert QUICK.scores(graph, balls, 0.01).score.tolist() == pytest.approx([0.01] * 3)


def test_the_steeper_side_of_one_relu_is_found() -> None:
    """y_0 - y_1 = 1 - max(x, 0) - x / 2: slopes 1/2 and 3/2."""
    graph = layers(([[1.0], [0.5], [-0.5]], [0.0, 0.0, 0.0]), ([[-1.0, -1.0, 1.0], [0.0, 0.0, 0.0]], [1.0, 0.0]))
    balls = Balls(torch.tensor([[-0.25]]), torch.tensor([0]))
    found = QUICK.scores(graph, balls, 1.0)
    assert float(found.lipschitz[0, 0]) == pytest.approx(1.5) and float(found.score[0]) == pytest.approx(1.125 / 1.5)
    assert float(found.score[0]) <= 2 / 3 + 0.25, "the radius"
    small = QUICK.scores(graph, balls, 0.2)
    assert float(small.lipschitz[0, 0]) == pytest.approx(0.5), "the kink lies outside the ball"
    masked = Balls(torch.tensor([[-0.25]]), torch.tensor([0]), mask=torch.tensor([False]))
    assert float(QUICK.scores(graph, masked, 1.0).score[0]) == 1.0, "what does not move has no gradient"
    plane = layers(([[1.0, 3.0], [0.0, 0.0]], [0.0, 0.0]))
    half = Balls(torch.tensor([[0.25, 0.25]]), torch.tensor([0]), mask=torch.tensor([True, False]))
    assert float(QUICK.scores(plane, half, 10.0).score[0]) == pytest.approx(1.0), "nor has what is fixed beside it"


@pytest.mark.parametrize("norm", NORMS)
def test_no_norm_seen_is_above_the_estimate_and_targets_are_classes(norm: float) -> None:
    graph = dense(3)
    balls = labelled(graph, 2, norm)
    found = QUICK.scores(graph, balls, 0.5)
    assert bool((found.lipschitz >= found.largest).all()) and bool(found.complete.all())
    assert torch.equal(found.score, found.by_class.amin(1))
    assert bool((found.low <= found.score).all() and (found.score <= found.high).all())
    label = int(balls.label[0])
    for k, j in enumerate(j for j in range(3) if j != label):
        one = Balls(balls.x[:1], balls.label[:1], norm, target=j)
        assert float(QUICK.scores(graph, one, 0.5).score[0]) == float(found.by_class[0, k])


def test_seeds_reproduce_and_inputs_do_not_meet() -> None:
    graph = dense(4)
    balls = labelled(graph, 3)
    one = QUICK.scores(graph, balls, 0.5, seed=7)
    assert torch.equal(one.score, QUICK.scores(graph, balls, 0.5, seed=7).score)
    assert not torch.equal(one.lipschitz, QUICK.scores(graph, balls, 0.5, seed=8).lipschitz)
    for i in range(3):
        alone = QUICK.scores(graph, balls.take(torch.tensor([i])), 0.5, seed=7, ids=torch.tensor([i]))
        assert torch.equal(alone.score, one.score[i:i + 1]) and torch.equal(alone.high, one.high[i:i + 1])


def test_a_fit_that_is_bad_is_told() -> None:
    """Two slopes only: the maxima of small batches take two values, which no Weibull does."""
    graph = layers(([[1.0], [0.5], [-0.5]], [-0.9, 0.0, 0.0]), ([[-1.0, -1.0, 1.0], [0.0, 0.0, 0.0]], [1.0, 0.0]))
    found = Clever(batches=60, samples=8).scores(graph, Balls(torch.zeros(1, 1), torch.tensor([0])), 1.0)
    assert bool(found.doubtful[0, 0]) and bool(found.warning[0]) and float(found.p_value[0, 0]) < 0.05


def test_a_spike_that_no_sample_meets_makes_the_score_too_large() -> None:
    """An estimate is no bound: y_0 - y_1 falls by 2 inside |x - 1/2| < 10^-6 and is 1 elsewhere."""
    steep = 1e6
    graph = layers(([[steep], [steep], [steep]], [-0.5 * steep + 1, -0.5 * steep, -0.5 * steep - 1]),
                   ([[-2.0, 4.0, -2.0], [0.0, 0.0, 0.0]], [1.0, 0.0]))
    balls = Balls(torch.zeros(1, 1), torch.tensor([0]))
    assert float(graph(torch.tensor([[0.5]], dtype=torch.float64))[0] @ torch.tensor([1.0, -1.0]).double()) < 0
    found = QUICK.scores(graph, balls, 1.0)
    assert float(found.score[0]) == 1.0 > 0.5 and found.evidence is Evidence.ESTIMATE


def test_misclassified_inputs_score_zero_and_no_time_is_told() -> None:
    graph = dense(5)
    balls = labelled(graph, 1)
    wrong = Balls(balls.x, (balls.label + 1) % 3)
    assert float(QUICK.scores(graph, wrong, 0.5).score[0]) == 0.0
    late = QUICK.scores(graph, balls, 0.5, deadline=Deadline.starting_now(1e-9))
    assert not bool(late.complete[0]) and float(late.score[0]) == 0.0 and float(late.high[0]) == 0.5


@pytest.mark.parametrize(("change", "says"), [
    ({"batches": 2}, "at least 8 batches"), ({"confidence": 1.0}, "confidence must be")])
def test_settings_are_checked(change: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Clever(**change)  # type: ignore[arg-type]


def test_radii_are_checked() -> None:
    graph = dense(6)
    with pytest.raises(ValueError, match="radius > 0"):
        QUICK.scores(graph, labelled(graph, 1), 0.0)
