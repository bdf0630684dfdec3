"""Flow fields: identity, limit, gradients through the sampling, and pixels that have to move."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from verifier.attacks.criterion import Misclassified
from verifier.attacks.draws import Draws
from verifier.attacks.flow import Adam, Flow, flow_slope, shortened
from verifier.attacks.losses import loss_named
from verifier.attacks.model import as_model
from verifier.attacks.run import Run
from verifier.attacks.threat import Threat
from verifier.attacks.warp import flowed, roughness

ANYWHERE = Threat(math.inf, math.inf, (0.0, 1.0))


class Pixels(nn.Module):
    """Classes are pixels of the middle row: the brightest wins."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x[:, 0, x.shape[2] // 2]


def ramp() -> Tensor:
    """Brightness falls from column to column, about 0.15 a pixel: 5 x 5."""
    return torch.tensor([0.9, 0.74, 0.6, 0.44, 0.3]).expand(1, 1, 5, 5).clone()


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()


def inputs(count: int = 6) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_pixel_falls_when_its_neighbour_is_in_reach() -> None:
    x, label = ramp(), Misclassified(torch.zeros(1, dtype=torch.long))
    near = Flow(limit=0.3, smoothness=0.0).run(Pixels(), x, label, ANYWHERE)
    assert not near.success  # 0.9 - 0.3 * 0.16 against 0.74 + 0.3 * 0.16
    far = Flow(limit=0.6, smoothness=0.0).run(Pixels(), x, label, ANYWHERE)
    assert far.success
    assert float(far.x.max()) <= 0.9 + 1e-6  # nothing is brighter than what there was


def test_a_target_is_met() -> None:
    wanted = Misclassified(torch.zeros(1, dtype=torch.long), torch.full((1,), 2))
    result = Flow(limit=1.5, smoothness=0.0).run(Pixels(), ramp(), wanted, ANYWHERE)
    assert result.success
    assert int(Pixels()(result.x).argmax(1)) == 2


def test_no_limit_left_is_the_identity() -> None:
    x = ramp()
    still = Flow(limit=0.0, steps=3).run(Pixels(), x, Misclassified(torch.zeros(1, dtype=torch.long)), ANYWHERE,
                                         early_stop=False)
    torch.testing.assert_close(still.last, x, rtol=0, atol=1e-6)


def test_the_limit_holds_in_every_direction() -> None:
    flow = 3 * torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    short = shortened(flow, 0.7)
    length = flow.norm(dim=1)
    assert float(short.norm(dim=1).max()) <= 0.7 * (1 + 1e-6)
    inside = (length <= 0.7).unsqueeze(1).expand_as(flow)
    assert inside.any()
    torch.testing.assert_close(short[inside], flow[inside])


@pytest.mark.parametrize("pinned", [False, True])
def test_slope_by_finite_differences(pinned: bool) -> None:
    """Through the model, the sampling and the roughness; pinned features follow nothing."""
    x, model = inputs(2), net()
    mask = torch.ones(2, 6, 6, dtype=torch.bool)
    mask[:, :3] = not pinned
    criterion = Misclassified(model(x).argmax(1))
    room = Threat(math.inf, math.inf, (-9.0, 9.0), mask).around(x)
    run = Run(as_model(model), room, criterion, Draws(0, torch.arange(2)), early_stop=False)
    run.begin()
    loss, _ = loss_named("margin", criterion, 3)
    owner = torch.arange(2)
    flow = 0.3 * torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slope = flow_slope(run, flow, owner, loss, 0.05)
    assert run.backward_calls.tolist() == [1, 1]

    def value(f: Tensor) -> float:
        moved = torch.where(mask, flowed(x, f), x)
        return float((loss(model(moved), moved, owner) - 0.05 * roughness(f)).sum().detach())

    step = 1e-6
    for place in [(0, 0, 1, 2), (0, 1, 4, 4), (1, 0, 5, 0), (1, 1, 2, 3), (1, 1, 0, 5)]:
        bump = torch.zeros_like(flow)
        bump[place] = step
        assert float(slope[place]) == pytest.approx((value(flow + bump) - value(flow - bump)) / (2 * step), abs=1e-6)


def test_smoothness_smooths() -> None:
    """Of flows that all find the way, a larger weight leaves a smoother image change."""
    x, label = ramp(), Misclassified(torch.zeros(1, dtype=torch.long))
    rough, smooth = (Flow(limit=1.0, smoothness=s, steps=40).run(Pixels(), x, label, ANYWHERE, early_stop=False)
                     for s in (0.0, 0.3))
    assert rough.success
    assert float((smooth.last - x).std(dim=2).mean()) < 0.5 * float((rough.last - x).std(dim=2).mean())


def test_same_alone_or_in_a_batch_and_pinned_features_stay() -> None:
    x, model = inputs(24), net()
    mask = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(3)) < 0.9
    threat = Threat(2.0, math.inf, (0.0, 1.0), mask)
    label = model(x).argmax(1)
    attack = Flow(limit=3.0, smoothness=0.0, steps=20, restarts=2, learning_rate=0.1)
    batch, again = (attack.run(model, x, Misclassified(label), threat, seed=7) for _ in range(2))
    assert torch.equal(batch.x, again.x)
    assert torch.equal(batch.last[:, ~mask], x[:, ~mask])
    assert float(batch.last.min()) >= 0
    assert float(batch.last.max()) <= 1
    for i in range(0, 24, 2):
        alone = attack.run(model, x[i : i + 1], Misclassified(label[i : i + 1]), threat, seed=7, ids=torch.tensor([i]))
        torch.testing.assert_close(alone.last[0], batch.last[i])
        assert int(alone.backward_calls) == int(batch.backward_calls[i])
    assert len(set(batch.backward_calls.tolist())) > 1  # some left before others
    assert int(batch.backward_calls.max()) <= 40


def test_successes_are_of_another_class_and_eps_says_which_count() -> None:
    x, model = inputs(), net()
    label = model(x).argmax(1)
    result = Flow(limit=3.0, smoothness=0.0).run(model, x, Misclassified(label), ANYWHERE)
    assert result.success.any()
    assert (model(result.x[result.success]).argmax(1) != label[result.success]).all()
    near = Flow(limit=3.0, smoothness=0.0).run(model, x, Misclassified(label), Threat(math.inf, 1e-3, (0.0, 1.0)))
    assert not near.success.any()


def test_adam_agrees_with_torch() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, generator=g, dtype=torch.float64)
    theirs = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.1, maximize=True)
    ours, adam = x.clone(), Adam.like(x)
    for _ in range(5):
        slope = torch.randn(3, 4, generator=g, dtype=torch.float64)
        theirs.grad = slope.clone()
        optimizer.step()
        ours = ours + 0.1 * adam.direction(slope)
    torch.testing.assert_close(ours, theirs.detach())
    part = adam.index(torch.tensor([2, 0]))
    torch.testing.assert_close(part.direction(slope[[2, 0]]), adam.direction(slope)[[2, 0]])


@pytest.mark.parametrize("settings", [{"steps": 0}, {"limit": -1.0}, {"smoothness": math.inf}, {"learning_rate": 0.0}])
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Flow(**settings)  # type: ignore[arg-type]


def test_flat_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="flow moves images"):
        Flow().run(nn.Linear(4, 2), torch.zeros(2, 4), Misclassified(torch.zeros(2, dtype=torch.long)), ANYWHERE)
