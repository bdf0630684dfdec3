"""Attacks that need decisions alone: starting points, HopSkipJump, transferred examples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.verifier.attacks.problems import Linear, bowl, linear
from verifier.attacks.criterion import Misclassified
from verifier.attacks.draws import Draws
from verifier.attacks.hopskipjump import HopSkipJump
from verifier.attacks.model import as_model
from verifier.attacks.pgd import Pgd
from verifier.attacks.run import Run
from verifier.attacks.starts import adversarial_starts
from verifier.attacks.threat import Threat
from verifier.attacks.transfer import Transfer


def decisions(module: nn.Module) -> Any:
    """A module as a function that tells labels and nothing else."""
    return lambda x: module(torch.from_numpy(x)).argmax(1).numpy()


# ---------------------------------------------------------------------- starting points


def started(model: nn.Module, x: Tensor, criterion: Misclassified, pool: Tensor | None, *,
            clip: tuple[float, float] | None = None, queries: int | None = None) -> Run:
    run = Run(as_model(model), Threat(2.0, math.inf, clip).around(x), criterion, Draws(0, torch.arange(len(x))),
              minimum_norm=True, pool=pool, queries=queries)
    run.begin()
    return run


def test_near_inputs_are_found_first_and_met() -> None:
    known = linear(2.0, count=40)
    run = started(known.model, known.x, known.criterion, known.x)
    i = torch.arange(20)
    x, found = adversarial_starts(run, i)
    assert found.all()
    assert (known.model(x).argmax(1) != known.label[:20]).all()
    assert all(bool((point == known.x).flatten(1).all(1).any()) for point in x), "inputs, as long as they suffice"
    other = known.label[:20].unsqueeze(1) != known.label
    far = torch.cdist(known.x[:20].flatten(1), known.x.flatten(1))
    ranks = (far.masked_fill(~other, math.inf) < (x - known.x[:20]).flatten(1).norm(dim=1, keepdim=True) - 1e-5).sum(1)
    few = run.forward_calls[:20] <= 1 + 12  # the others needed inputs at random
    assert int(few.sum()) > 5
    assert float(ranks[few].double().mean()) < 4, "near the nearest that has another label"
    assert int(run.forward_calls.max()) <= 1 + 12 + 24


@pytest.mark.parametrize("clip", [(0.0, 1.0), None])
def test_without_other_inputs_random_points_serve(clip: tuple[float, float] | None) -> None:
    known = linear(2.0, clip=True)
    for pool in (None, known.x[:1]):
        run = started(known.model, known.x, known.criterion, pool, clip=clip)
        x, found = adversarial_starts(run, torch.arange(6))
        assert found.all()
        assert (known.model(x).argmax(1) != known.label).all()
        if clip:
            assert float(x.min()) >= 0
            assert float(x.max()) <= 1


def test_no_start_is_no_start_and_the_limit_holds() -> None:
    known = linear(2.0)
    never = Linear(torch.zeros(4, 12), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    criterion = Misclassified(torch.zeros(6).long())
    run = started(never, known.x, criterion, known.x, clip=(-5.0, 5.0), queries=30)
    x, found = adversarial_starts(run, torch.arange(6))
    assert not found.any()
    assert torch.equal(x, known.x)
    assert (run.forward_calls <= 30).all()
    result = HopSkipJump().run(never, known.x, criterion, Threat(2.0, math.inf, (-5.0, 5.0)))
    assert not result.success.any()
    assert any("nothing to start from" in note for note in result.notes)
    assert int(result.forward_calls.max()) < 80


# ---------------------------------------------------------------------- HopSkipJump


@pytest.mark.parametrize("norm", [math.inf, 2.0])
def test_labels_of_a_function_are_enough(norm: float) -> None:
    known = linear(norm, classes=2)  # with more, it may stay beside the class it started in
    result = HopSkipJump(steps=10).run(decisions(known.model), known.x, known.criterion, known.threat)
    assert result.success.all()
    ratio = result.distance.numpy() / known.distance
    assert np.median(ratio) < 1.05, ratio
    assert ratio.min() > 1 - 1e-4


def test_classes_that_no_label_names_count_as_other_classes() -> None:
    """The criterion names class 0 alone; the function answers up to 9."""
    result = HopSkipJump(steps=10).run(lambda x: (9 * (x[:, 0] > 0.7)).astype(np.int64), torch.tensor([[0.5, 0.5]]),
                                      Misclassified(torch.tensor([0])), Threat(2.0, math.inf, (0.0, 1.0)))
    assert float(result.distance) == pytest.approx(0.2, rel=0.02)


def test_a_curved_boundary_is_followed_to_its_nearest_point() -> None:
    known = bowl(dtype=torch.float64)
    result = HopSkipJump(steps=30).run(known.model, known.x, known.criterion, known.threat)
    np.testing.assert_allclose(result.distance.numpy(), known.distance, rtol=0.03)
    outward = known.x / known.x.norm(dim=1, keepdim=True)
    move = result.x - known.x
    assert (torch.cosine_similarity(move, outward) > 0.9).all()


def test_the_estimated_normal_is_the_true_one() -> None:
    known = linear(2.0, classes=2, dtype=torch.float64, count=1)
    weight = known.model.weight
    other = 1 - int(known.label)
    w = (weight[other] - weight[known.label[0]]).view(1, 3, 4)
    at = known.x + w * known.distance[0] / w.norm()
    for norm, least in ((2.0, 0.97), (math.inf, 0.8)):
        run = Run(as_model(known.model), Threat(norm, math.inf).around(known.x), known.criterion,
                  Draws(0, torch.arange(1)), minimum_norm=True)
        normal = HopSkipJump()._normal(run, at, torch.arange(1), torch.tensor([1e-3]).double(), 1000)
        true = w if norm == 2.0 else w.sign()
        assert float(torch.cosine_similarity(normal.flatten(1), true.flatten(1))) > least


@pytest.mark.parametrize("queries", [50, 333])
def test_every_query_is_used_and_no_more(queries: int) -> None:
    known = linear(2.0)
    result = HopSkipJump().run(known.model, known.x, known.criterion, known.threat, queries=queries)
    assert (result.forward_calls == queries).all()


@pytest.mark.parametrize("settings", [{"steps": 0}, {"samples": 1}, {"most_samples": 0}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        HopSkipJump(**settings)


# ---------------------------------------------------------------------- Transfer


def test_examples_of_a_like_surrogate_fool_a_model_that_tells_labels() -> None:
    known = linear(math.inf, count=30)
    other = Linear(known.model.weight + 0.1 * torch.randn(4, 12, generator=torch.Generator().manual_seed(1)),
                   known.model.bias)
    where = Threat(math.inf, 1.5 * float(known.distance.max()))
    result = Transfer(surrogate=other).run(decisions(known.model), known.x, known.criterion, where)
    assert float(result.success.double().mean()) > 0.9
    assert (result.forward_calls <= 3).all(), "the original, the last and the worst point"
    assert (result.backward_calls == 0).all()


def test_the_surrogate_goes_on_after_it_fell() -> None:
    """With the model's boundary twice as far as the surrogate's, examples that just fool the surrogate do not."""
    weight = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    near, far = Linear(weight, torch.tensor([0.1, 0.0])), Linear(weight, torch.tensor([0.4, 0.0]))
    result = Transfer(surrogate=near).run(far, torch.zeros(1, 2), Misclassified(torch.tensor([0])),
                                          Threat(math.inf, 0.15))
    assert result.success.all()


def test_multiples_try_points_along_the_line() -> None:
    seen: list[np.ndarray] = []

    def watched(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return np.stack([np.ones(len(x)), np.zeros(len(x))], 1)

    surrogate = Linear(torch.tensor([[1.0], [-1.0]]), torch.zeros(2))
    Transfer(surrogate=surrogate, multiples=(0.5, 1.0, 4.0)).run(
        watched, torch.tensor([[0.3]]), Misclassified(torch.tensor([0])), Threat(math.inf, 0.2))
    points = np.concatenate(seen).flatten()
    assert len(points) == 1 + 2 * 3
    np.testing.assert_allclose(points[1:4], [0.2, 0.1, 0.1], atol=1e-6)  # the last is moved into the ball


@pytest.mark.parametrize(("settings", "match"), [
    ({}, "needs a surrogate"), ({"surrogate": nn.Identity(), "multiples": ()}, "multiples"),
    ({"surrogate": nn.Identity(), "multiples": (0.0,)}, "multiples"),
    ({"surrogate": nn.Identity(), "attack": "hopskipjump"}, "looks inside eps"),
    ({"surrogate": nn.Identity(), "settings": {"speed": 1}}, "no setting 'speed'"),
])
def test_settings_of_a_transfer_are_checked(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Transfer(**settings)


def test_a_surrogate_must_know_enough() -> None:
    known = linear(math.inf)
    with pytest.raises(ValueError, match="pgd needs gradients of the surrogate, which gives scores only"):
        Transfer(surrogate=lambda x: x).run(known.model, known.x, known.criterion, Threat(math.inf, 0.1))


def test_the_surrogate_alone_is_what_the_inner_attack_reaches() -> None:
    known = linear(2.0, seed=4)
    where = Threat(2.0, 0.8 * float(np.median(known.distance)))
    inner = Pgd().run(known.model, known.x, known.criterion, where)
    outer = Transfer(surrogate=known.model).run(known.model, known.x, known.criterion, where)
    assert torch.equal(inner.success, outer.success)
