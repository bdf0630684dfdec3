"""Estimated gradients against true ones, and the attacks that climb along them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.verifier.attacks.problems import bowl, linear
from verifier.attacks.criterion import Misclassified
from verifier.attacks.draws import Draws
from verifier.attacks.estimate import estimated_slope, feature_size, slope_of
from verifier.attacks.gradient_free import Adam, Ascent, GradientFree, Nes, RandomGradientFree, Spsa
from verifier.attacks.losses import loss_named
from verifier.attacks.model import as_model
from verifier.attacks.run import Run
from verifier.attacks.threat import Threat

COUNT, FEATURES = 3, 6
OWNER = torch.arange(COUNT)
KINDS = (RandomGradientFree, Nes, Spsa)


class Quadratic(nn.Module):
    """y = (0, x' A x + b' x): the margin loss of class 0 is the quadratic itself."""

    def __init__(self, curved: bool) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        a = torch.randn(FEATURES, FEATURES, generator=g, dtype=torch.float64) * curved
        self.a = nn.Parameter(a + a.T, requires_grad=False)
        self.b = nn.Parameter(torch.randn(FEATURES, generator=g, dtype=torch.float64), requires_grad=False)

    def value(self, x: Tensor) -> Tensor:
        return torch.einsum("bf,fg,bg->b", x, self.a, x) + x @ self.b

    def slope(self, x: Tensor) -> Tensor:
        return 2 * x @ self.a + self.b

    def forward(self, x: Tensor) -> Tensor:
        value = self.value(x)
        return torch.stack([torch.zeros_like(value), value], 1)


def started(model: nn.Module, *, queries: int | None = None, clip: tuple[float, float] | None = None,
            ) -> tuple[Run, Tensor]:
    x = 0.1 + 0.8 * torch.rand(COUNT, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    run = Run(as_model(model), Threat(math.inf, 10.0, clip).around(x), Misclassified(torch.zeros(COUNT).long()),
              Draws(0, OWNER), early_stop=False, queries=queries)
    run.begin()
    return run, x


def basis() -> Tensor:
    """Directions whose second moment is exactly the identity: "COUNT FEATURES FEATURES"."""
    return math.sqrt(FEATURES) * torch.eye(FEATURES, dtype=torch.float64).expand(COUNT, -1, -1)


def estimated(run: Run, x: Tensor, directions: Tensor, *, forward: bool = False, width: float = 0.1) -> Tensor:
    loss, _ = loss_named("margin", run.criterion, 2)
    value = loss(run.model(x), x, OWNER) if forward else None
    return estimated_slope(run, x, OWNER, directions, torch.full((COUNT,), width, dtype=torch.float64), loss, value)


@pytest.mark.parametrize("forward", [False, True])
def test_linear_functions_are_estimated_exactly(forward: bool) -> None:
    model = Quadratic(curved=False)
    run, x = started(model)
    torch.testing.assert_close(estimated(run, x, basis(), forward=forward), model.slope(x))
    assert (run.forward_calls == 1 + FEATURES * (1 if forward else 2)).all()


def test_central_differences_are_exact_for_quadratics_and_forward_ones_off_by_the_curvature() -> None:
    model = Quadratic(curved=True)
    run, x = started(model)
    torch.testing.assert_close(estimated(run, x, basis()), model.slope(x))
    step = 0.1 * math.sqrt(FEATURES)
    torch.testing.assert_close(estimated(run, x, basis(), forward=True),
                               model.slope(x) + step * model.a.diagonal())


@pytest.mark.parametrize("kind", [RandomGradientFree, Spsa])
def test_random_directions_are_unbiased(kind: type[GradientFree]) -> None:
    """The mean of 40,000 lies within five standard errors, sqrt(F + 1) ||slope|| / sqrt(count) at most, everywhere."""
    model = Quadratic(curved=True)
    run, x = started(model)
    slope = model.slope(x)
    mean = estimated(run, x, kind(samples=40_000).directions(run, OWNER))
    error = (FEATURES + 1) ** 0.5 * slope.norm(dim=1) / 200
    assert ((mean - slope).abs().amax(1) < 5 * error).all()


def test_points_without_a_query_count_as_no_difference() -> None:
    model = Quadratic(curved=False)
    run, x = started(model, queries=1 + FEATURES + 2)  # both sides of the first two directions only
    slope = estimated(run, x, basis())
    torch.testing.assert_close(slope[:, :2], model.slope(x)[:, :2])
    assert (slope[:, 2:] == 0).all()
    assert (run.forward_calls == 1 + FEATURES + 2).all()
    assert (estimated(run, x, basis()) == 0).all(), "nothing is left"


@pytest.mark.parametrize(("norm", "expected"), [(math.inf, 0.2), (2.0, 0.2 / 2), (1.0, 0.2 / 4)])
def test_a_share_of_eps_is_spread_over_the_free_features(norm: float, expected: float) -> None:
    mask = torch.tensor([True, True, False, True, True, False])
    x = torch.full((1, FEATURES), 0.5)
    run = Run(as_model(lambda x: x), Threat(norm, 2.0, None, mask).around(x), Misclassified(torch.zeros(1).long()),
              Draws(0, torch.arange(1)))
    assert feature_size(run, torch.arange(1), 0.1).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
def test_a_little_more_than_the_exact_distance_suffices(kind: type[GradientFree], norm: float) -> None:
    known = linear(norm, classes=2, dtype=torch.float64)  # with more, an ascent may end beside the wrong one
    for slack, falls in ((1.25, True), (0.99, False)):
        for i in range(3):
            result = kind(samples=12).run(known.model, known.x[i : i + 1], Misclassified(known.label[i : i + 1]),
                                          Threat(norm, slack * float(known.distance[i])))
            assert bool(result.success) == falls, (kind, slack, i)


@pytest.mark.parametrize("kind", KINDS)
def test_gets_out_of_a_bowl(kind: type[GradientFree]) -> None:
    known = bowl()
    result = kind(samples=10).run(known.model, known.x, known.criterion, Threat(2.0, 1.2 * float(known.distance.max())))
    assert result.success.all()
    assert (result.backward_calls == 0).all()


@pytest.mark.parametrize(("central", "queries"), [(True, 1 + 4 * (2 * 3 + 1)), (False, 1 + 1 + 4 * (3 + 1))])
def test_queries_of_a_step(central: bool, queries: int) -> None:
    known = linear(math.inf)
    result = RandomGradientFree(steps=4, samples=3, central=central).run(
        known.model, known.x, known.criterion, Threat(math.inf, 1e-4))
    assert (result.forward_calls == queries).all()


def test_adam_is_adam() -> None:
    run, x = started(Quadratic(curved=False))
    parameter = nn.Parameter(x.clone())
    reference = torch.optim.Adam([parameter], lr=0.5, maximize=True)
    ours, point = Adam(0.05), x.clone()  # of eps 10
    for k in range(5):
        slope = torch.sin(torch.arange(COUNT * FEATURES, dtype=torch.float64) * (k + 1)).view(COUNT, FEATURES)
        parameter.grad = slope
        reference.step()
        point = point + ours.step(run, OWNER, slope)
    torch.testing.assert_close(point, parameter.detach())


@pytest.mark.parametrize("settings", [{"steps": 0}, {"samples": 0}, {"width": 0.0}, {"step_size": -1.0},
                                      {"momentum": 1.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Nes(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("forward", [False, True])
def test_plain_functions_are_estimated_without_a_run(forward: bool) -> None:
    model = Quadratic(curved=not forward)
    x = torch.randn(COUNT, FEATURES, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    width = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    seen: list[tuple[int, ...]] = []

    def f(points: Tensor) -> Tensor:
        seen.append(tuple(points.shape))
        return model.value(points.flatten(0, 1)).view(points.shape[:2])
    torch.testing.assert_close(slope_of(f, x, basis(), width, model.value(x) if forward else None), model.slope(x))
    assert seen == [(COUNT, FEATURES if forward else 2 * FEATURES, FEATURES)]


def test_the_average_of_estimates_fades() -> None:
    ascent = Ascent(0.75, share=1.0)
    assert [float(ascent.averaged(torch.tensor(v))) for v in (4.0, 0.0, 8.0)] == [4.0, 3.0, 4.25]
