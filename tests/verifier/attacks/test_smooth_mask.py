"""PGD on few pixels: how many may differ, which are chosen, and what the half-neighbour rule makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.verifier.attacks.problems import Linear, linear
from verifier.attacks.criterion import Misclassified
from verifier.attacks.smooth_mask import SmoothMask, _largest, _refined
from verifier.attacks.threat import Threat

NORMS = [math.inf, 2.0, 1.0]


def conv(channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 81, 4)).double()


def images(count: int = 8, channels: int = 2) -> Tensor:
    return torch.rand(count, channels, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("window", [1, 3, 5])
def test_at_most_so_many_pixels_differ(norm: float, window: int) -> None:
    model, x = conv(), images()
    label = Misclassified(model(x).argmax(1))
    eps = {math.inf: 0.5, 2.0: 2.0, 1.0: 5.0}[norm]
    result = SmoothMask(pixels=7, window=window, steps=10).run(model, x, label, Threat(norm, eps, (0.0, 1.0)),
                                                              early_stop=False)
    for point in (result.x, result.last):
        differ = (point != x).any(1).flatten(1).sum(1)
        assert int(differ.max()) <= 7
    assert (result.last != x).all(1).flatten(1).sum(1).max() > 3  # whole pixels, over both channels
    assert float(result.distance[result.success].max()) <= eps


def test_the_best_features_of_a_linear_net() -> None:
    """What a feature promises is its weight times the way that it can go; the four best decide what eps suffices."""
    known = linear(math.inf, classes=2, shape=(12,), count=8, clip=True, dtype=torch.float64)
    weight = known.model.weight
    away = torch.where((known.label == 0).unsqueeze(1), weight[1] - weight[0], weight[0] - weight[1])
    y = known.model(known.x).sort(1, descending=True).values
    eps = 0.2
    way = torch.where(away > 0, (1 - known.x).clamp(max=eps), known.x.clamp(max=eps))
    best = (away.abs() * way).sort(1, descending=True).values[:, :4].sum(1)
    falls = best > y[:, 0] - y[:, 1]
    assert falls.any()
    assert not falls.all()
    result = SmoothMask(pixels=4, loss="margin", samples=2).run(known.model, known.x, known.criterion,
                                                                Threat(math.inf, eps, (0.0, 1.0)))
    assert torch.equal(result.success, falls)


def test_smoothing_finds_what_the_gradient_at_the_original_hides() -> None:
    """A unit that is switched off at the original, strongest of all when noise switches it on."""

    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 1 - 5 * torch.relu(x[:, 0] - 0.51) - 0.1 * x[:, 1] - 0.05 * x[:, 2]
            return torch.stack([score, torch.zeros_like(score)], 1)

    x = torch.tensor([[0.5, 0.0, 1.0]])
    label, threat = Misclassified(torch.zeros(1, dtype=torch.long)), Threat(math.inf, 0.4, (0.0, 1.0))
    settings: dict[str, object] = {"pixels": 1, "loss": "margin", "step_size": 0.5}
    assert SmoothMask(**settings, noise=0.2).run(Hidden(), x, label, threat).success  # type: ignore[arg-type]
    assert not SmoothMask(**settings, noise=0.0).run(Hidden(), x, label, threat).success  # type: ignore[arg-type]


def test_a_feature_at_the_end_of_the_range_promises_nothing() -> None:
    model = Linear(torch.tensor([[-3.0, -1.0], [0.0, 0.0]]), torch.tensor([4.0, 0.0]))
    x, label = torch.tensor([[1.0, 0.6]]), Misclassified(torch.zeros(1, dtype=torch.long))
    assert not SmoothMask(pixels=1, noise=0.0).run(model, x, label, Threat(math.inf, 0.39, (0.0, 1.0))).success
    found = SmoothMask(pixels=1, noise=0.0).run(model, x, label, Threat(math.inf, 0.405, (0.0, 1.1)))
    assert found.success  # the first can do 3 * 0.1 now, the second still more: 0.405


def test_a_pixel_is_judged_over_all_channels() -> None:
    weight = torch.zeros(2, 2, 3, 3)
    weight[1, 1, 1, 2], weight[1, 0, 0, 0] = 3.0, 1.0
    model = Linear(weight.flatten(1), torch.tensor([1.0, 0.0]))
    result = SmoothMask(pixels=1, window=1).run(model, torch.zeros(1, 2, 3, 3), Misclassified(
        torch.zeros(1, dtype=torch.long)), Threat(math.inf, 0.5, (0.0, 1.0)))
    assert result.success


def test_half_neighbour_rule() -> None:
    grid = torch.tensor([[1, 1, 1, 0, 0],
                         [1, 0, 1, 0, 0],
                         [1, 1, 1, 0, 1],
                         [0, 0, 0, 0, 0],
                         [1, 0, 0, 0, 0]], dtype=torch.bool)
    # More than 4.5 of nine, the outside counted as not chosen: the hole is filled, lone pixels and corners go.
    kept = torch.tensor([[0, 1, 0, 0, 0],
                         [1, 1, 1, 0, 0],
                         [0, 1, 0, 0, 0],
                         [0, 0, 0, 0, 0],
                         [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(_refined(grid.unsqueeze(0), 3)[0], kept)


def test_rule_is_monotone_and_the_seed_is_the_largest_that_fits() -> None:
    g = torch.Generator().manual_seed(0)
    saliency = torch.rand(5, 9, 9, generator=g)
    chosen = SmoothMask(pixels=12)._gathered(saliency)
    assert (chosen.flatten(1).sum(1) == 12).all()
    for row, mask in zip(saliency, chosen, strict=True):
        refined = [_refined(_largest(row.unsqueeze(0), torch.tensor([n])), 3)[0] for n in range(82)]
        counts = [int(r.sum()) for r in refined]
        assert counts == sorted(counts)
        seed = max(n for n in range(82) if counts[n] <= 12)
        assert bool((mask | ~refined[seed]).all())  # all of it is in the mask
        rest = mask & ~refined[seed]
        outside = row[~mask & ~refined[seed]]
        assert not rest.any() or float(row[rest].min()) >= float(outside.max())


def test_window_gathers_pixels() -> None:
    """Chosen pixels have more neighbours that are chosen than the most salient ones have."""
    saliency = torch.rand(20, 16, 16, generator=torch.Generator().manual_seed(0))
    saliency += torch.nn.functional.avg_pool2d(saliency.unsqueeze(1), 5, 1, 2).squeeze(1)
    def neighbours(mask: Tensor) -> float:
        return float((mask[:, 1:] & mask[:, :-1]).sum() + (mask[..., 1:] & mask[..., :-1]).sum())
    gathered = SmoothMask(pixels=30)._gathered(saliency)
    assert neighbours(gathered) > 1.5 * neighbours(_largest(saliency, torch.full((20,), 30)))


def test_deterministic_alone_or_in_a_batch_with_mask_queries_and_counts() -> None:
    model, x = conv(), images()
    label = model(x).argmax(1)
    mask = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(3)) < 0.5
    threat = Threat(math.inf, 0.2, (0.0, 1.0), mask)
    attack = SmoothMask(pixels=9, steps=8, samples=5)
    batch, again = (attack.run(model, x, Misclassified(label), threat, seed=2) for _ in range(2))
    assert torch.equal(batch.x, again.x)
    assert torch.equal(batch.last[:, ~mask], x[:, ~mask])
    assert int(batch.backward_calls.max()) == 13
    for i in (1, 6):
        alone = attack.run(model, x[i : i + 1], Misclassified(label[i : i + 1]), threat, seed=2, ids=torch.tensor([i]))
        torch.testing.assert_close(alone.x[0], batch.x[i])
    short = attack.run(model, x, Misclassified(label), threat, queries=4)
    assert int(short.forward_calls.max()) <= 4


def test_noise_is_no_proposal() -> None:
    """Noisy copies fall on their way, but all their features differ."""
    model = Linear(torch.tensor([[1.0] * 6, [0.0] * 6]), torch.zeros(2))
    x = torch.full((1, 6), 0.05)
    x[0, 0] = 1.0
    result = SmoothMask(pixels=1, noise=2.0, samples=30).run(model, x, Misclassified(torch.zeros(1, dtype=torch.long)),
                                                             Threat(math.inf, 0.5))
    assert not result.success
    assert int((result.x != x).sum()) <= 1


def test_a_target_is_met() -> None:
    model, x = conv(), images(20)
    label = model(x).argmax(1)
    target = (label + 1) % 4
    result = SmoothMask(pixels=30).run(model, x, Misclassified(label, target), Threat(math.inf, 1.0, (0.0, 1.0)))
    assert float(result.success.double().mean()) > 0.5
    assert torch.equal(model(result.x[result.success]).argmax(1), target[result.success])


@pytest.mark.parametrize("settings", [{"pixels": 0}, {"samples": 0}, {"noise": -0.1}, {"window": 4}])
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SmoothMask(**settings)  # type: ignore[arg-type]
