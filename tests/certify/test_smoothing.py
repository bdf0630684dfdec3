"""Randomised smoothing: what is certified holds as often as stated, by a classifier whose true radius is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from certify.smoothing import ABSTAINED, Smoothed, lower_share, radius_of
from verifier.verdict import Evidence

W, B = torch.tensor([[0.6, -0.8], [0.0, 0.0]]), torch.tensor([0.1, 0.0])


def linear(x: Tensor) -> Tensor:
    """Class 0 where w x + b > 0, |w| = 1: smoothing leaves its boundary where it is."""
    return x.flatten(1) @ W.T + B


def distance(x: Tensor) -> np.ndarray:
    return linear(x)[:, 0].double().abs().numpy()


def points(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 1, 1, 2, generator=torch.Generator().manual_seed(seed)) * 0.5


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("samples", [10, 137, 1000])
def test_the_lower_share_is_the_clopper_pearson_bound(samples: int, alpha: float) -> None:
    for count in {0, 1, samples // 3, samples - 1, samples}:
        expected = stats.binomtest(count, samples, alternative="greater").proportion_ci(1 - alpha, "exact").low
        assert lower_share(np.array(count), samples, alpha) == pytest.approx(expected, abs=1e-12)


def test_certified_radii_of_a_linear_classifier_stay_within_its_distance_to_the_boundary() -> None:
    """The true radius is the distance. Far more often than 1 - alpha the certified one must stay below it."""
    x, alpha = points(400), 0.05
    found = Smoothed(linear, 0.5).certify(x, samples=1000, alpha=alpha)
    other = (found.label != ABSTAINED) & (found.label != (linear(x)[:, 0] <= 0).numpy())
    wrong = (found.radius > distance(x)) | other
    most = int(stats.binom.ppf(1 - 1e-6, len(x), alpha))
    assert 0 < int(wrong.sum()) <= most, "as often as stated, and a bound that is never wrong would be a loose one"
    assert found.evidence is Evidence.ESTIMATE and found.confidence == 0.95


def test_many_samples_come_near_to_the_distance() -> None:
    x = points(30)
    near = distance(x) < 0.75  # 1.5 sigma: further out the share is too near to one to be told from it
    found = Smoothed(linear, 0.5).certify(x[torch.from_numpy(near)], samples=100_000)
    ratio = found.radius / distance(x[torch.from_numpy(near)])
    assert (found.radius <= distance(x[torch.from_numpy(near)])).all()
    assert (ratio[distance(x[torch.from_numpy(near)]) > 0.1] > 0.9).all()


def test_the_radius_is_sigma_times_the_quantile_of_the_share() -> None:
    count = np.array([500, 700, 990, 1000])
    share = stats.beta.ppf(0.001, count, 1001 - count)
    expected = np.where(share > 0.5, 0.25 * special.ndtri(share), 0)
    np.testing.assert_allclose(radius_of(count, 1000, 0.001, 0.25), expected)
    assert expected[0] == 0 < expected[1]


def test_a_tie_makes_it_abstain() -> None:
    on_the_boundary = -B[0] * W[:1].reshape(1, 1, 1, 2).repeat(50, 1, 1, 1)
    smoothed = Smoothed(linear, 0.5)
    assert (smoothed.certify(on_the_boundary, samples=500).label == ABSTAINED).all()
    assert (smoothed.predict(on_the_boundary, samples=500) == ABSTAINED).all()
    far = on_the_boundary + W[:1].reshape(1, 1, 1, 2)
    assert (smoothed.predict(far, samples=500) == 0).all()


def test_predictions_abstain_as_the_test_of_a_fair_coin_says() -> None:
    x = points(60, 1) * 0.2
    kept: list[Tensor] = []

    def watched(points: Tensor) -> Tensor:
        kept.append(linear(points))
        return kept[-1]
    label = Smoothed(watched, 0.5, seed=3).predict(x, samples=200, alpha=0.05)
    hits = (torch.cat(kept).view(60, 200, 2)[..., 0] > 0).sum(1).tolist()
    expected = [(0 if h > 100 else 1) if stats.binomtest(h, 200).pvalue <= 0.05 else ABSTAINED for h in hits]
    assert label.tolist() == expected and ABSTAINED in expected and 0 in expected


def test_answers_do_not_depend_on_the_batch() -> None:
    x, ids = points(12), torch.arange(12) + 5
    smoothed = Smoothed(linear, 0.5, seed=1)
    together = smoothed.certify(x, samples=1200, ids=ids, target=0.3)
    for k in range(12):
        alone = smoothed.certify(x[k : k + 1], samples=1200, ids=ids[k : k + 1], target=0.3)
        assert (alone.label[0], alone.radius[0], alone.used[0]) == (together.label[k], together.radius[k],
                                                                   together.used[k])
    assert (Smoothed(linear, 0.5, seed=2).certify(x, samples=1200, ids=ids).radius != together.radius).any()


@pytest.mark.parametrize("target", [0.0, 0.2, 0.6])
def test_stopping_early_answers_as_all_samples_do_where_that_is_clear(target: float) -> None:
    x = points(80)
    smoothed = Smoothed(linear, 0.5)
    early = smoothed.certify(x, samples=10_000, guesses=2000, target=target)
    clear = np.abs(distance(x) - target) > 0.07
    assert clear.sum() > 50
    assert ((early.radius > target) == (distance(x) > target))[clear].all()
    assert (early.radius <= distance(x)).all()
    assert (early.label != ABSTAINED)[distance(x) > 0.07].all()
    assert (early.used - 2000).sum() < 0.5 * 10_000 * len(x)


def test_certificates_of_a_target_fail_no_more_often_than_stated() -> None:
    """The target is the true radius itself: no sampling may exceed it more often than alpha."""
    x = (W[:1] * (0.4 - float(B[0]))).reshape(1, 1, 1, 2).expand(600, 1, 1, 2)
    true = float(distance(x[:1])[0])
    found = Smoothed(linear, 0.5).certify(x, samples=2000, alpha=0.05, target=true)
    assert 0 < int((found.radius > true).sum()) <= int(stats.binom.ppf(1 - 1e-6, 600, 0.05))


def test_what_would_have_been_certified_is_hardly_given_up() -> None:
    """By simulation at a share where the end is open: given up and reached at the end never go together."""
    from certify.smoothing import _hopeless, _least_count
    generator = np.random.default_rng(0)
    needed = _least_count(0.4, 4000, 0.001, 0.5)
    hits = (generator.random((2000, 4000)) < (needed - 20) / 4000).cumsum(1)
    gave_up = np.zeros(2000, bool)
    for used in range(500, 4000, 500):
        gave_up |= _hopeless(hits[:, used - 1], used, 4000, needed)
    reached = hits[:, -1] >= needed
    assert reached.any() and gave_up.any() and not (gave_up & reached).any()
    assert _hopeless(np.array([0, 250]), 500, 4000, needed).all()
    assert not _hopeless(np.array([500]), 500, 4000, needed).any()


def test_large_inputs_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(5)
    whole = Smoothed(linear, 0.5).certify(x, samples=700)
    monkeypatch.setattr("certify.smoothing.BATCH_ENTRIES", 2 * 64)
    parts = Smoothed(linear, 0.5).certify(x, samples=700)
    np.testing.assert_array_equal(whole.radius, parts.radius)


def test_answers_that_are_no_numbers_count_for_no_class() -> None:
    found = Smoothed(lambda x: torch.full((len(x), 2), torch.nan), 0.5).certify(points(2), samples=100)
    assert (found.label == ABSTAINED).all() and (found.radius == 0).all()


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"guesses": 0}])
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected samples|guesses"):
        Smoothed(linear, 0.5).certify(points(1), **wrong)
    with pytest.raises(ValueError, match="sigma must be > 0"):
        Smoothed(linear, 0.0)


def test_each_look_has_its_part_of_alpha() -> None:
    def always(x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(len(x), 2)
    found = Smoothed(always, 0.5).certify(points(2), samples=10_000, alpha=0.01, target=0.1)
    first = 100  # a hundredth of the samples settles it
    assert found.used.tolist() == [100 + first] * 2
    np.testing.assert_allclose(found.radius, radius_of(np.array([first] * 2), first, 0.01 / 3, 0.5))
