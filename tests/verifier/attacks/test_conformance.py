"""What every attack promises, one product of all attacks and problems: a new row in `SETTINGS` buys the whole suite."""

from __future__ import annotations

import math
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests.verifier.attacks.problems import Known, linear
from verifier.attacks.base import Attack, norm_name
from verifier.attacks.criterion import Misclassified
from verifier.attacks.registry import ATTACKS, attack_class, attack_named
from verifier.attacks.threat import Threat

# Enough work to succeed on a linear classifier with twelve features; names not listed use their defaults.
SETTINGS: dict[str, dict[str, object]] = {
    "pgd": {"steps": 80}, "mi-fgsm": {}, "cw-inf": {"steps": 10}, "fmn": {"steps": 100}, "ddn": {"steps": 100},
    "sigma-zero": {"steps": 300}, "fab": {"steps": 20}, "fab-t": {"steps": 20},
    "cw": {"steps": 40}, "bb": {"steps": 40}, "square": {"steps": 600}, "hopskipjump": {"steps": 20},
    "mads": {"steps": 60},
    "zoo": {"steps": 60}, "autoattack": {"steps": 20, "queries": 300},
    # The classifiers of all tests but one are this one in every norm.
    "transfer": {"surrogate": linear(math.inf).model},
}
ADDITIVE = [n for n, e in ATTACKS.items() if e.kind != "beyond additive" and find_spec(e.where.partition(":")[0])]
NORMS = {"inf": math.inf, "2": 2.0, "1": 1.0, "0": 0.0}
CASES = [(name, NORMS[p]) for name in ADDITIVE for p in ATTACKS[name].norms]
FIXED = [(name, p) for name, p in CASES if not attack_class(name).minimum_norm]
SLACK = 1.3  # of the exact distance, inside which an attack with a fixed budget must succeed


def attack(name: str) -> Attack:
    return attack_named(name, **SETTINGS.get(name, {}))


def threat(name: str, known: Known, share: float = SLACK) -> Threat:
    """Unlimited for a minimum norm, else a ball around the exact distances: the largest of them times `share`."""
    plain = known.threat
    if attack_class(name).minimum_norm:
        return plain
    return Threat(plain.norm, share * float(known.distance.max()), plain.clip, plain.mask)


@pytest.mark.parametrize("name", [n for n in ATTACKS if find_spec(ATTACKS[n].where.partition(":")[0])])
def test_class_and_table_agree(name: str) -> None:
    cls = attack_class(name)
    assert cls.name == name
    assert tuple(norm_name(p) for p in cls.norms) == ATTACKS[name].norms


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("clip", [False, True])
def test_linear_classifiers_fall_and_nothing_leaves_its_set(name: str, norm: float, clip: bool) -> None:
    known = linear(norm, clip=clip)
    reachable = torch.from_numpy(np.isfinite(known.distance))
    where = threat(name, known) if bool(reachable.all()) else Threat(norm, 3.0, known.threat.clip)
    result = attack(name).run(known.model, known.x, known.criterion, where, seed=1)
    if bool(reachable.all()):
        assert result.success.all(), (result.distance, known.distance)
    for i in range(len(known.x)):
        if not result.success[i]:
            continue
        assert known.model(result.x[i : i + 1]).argmax(1) != known.label[i]
        move = [Fraction(float(a)) - Fraction(float(b)) for a, b in
                zip(result.x[i].flatten(), known.x[i].flatten(), strict=True)]
        length = exact_power(move, norm)
        assert length <= bound_power(float(result.distance[i]), norm)
        if not math.isinf(where.eps):
            assert length <= bound_power(where.eps, norm)
        if clip:
            assert float(result.x[i].min()) >= 0
            assert float(result.x[i].max()) <= 1
        # In float32 the label may change a little before the boundary.
        assert float(result.distance[i]) >= known.distance[i] * (1 - 1e-4) - 1e-5


def exact_power(move: list[Fraction], norm: float) -> Fraction:
    """The norm (its square for l_2), exactly."""
    if norm == math.inf:
        return max(abs(m) for m in move)
    if norm == 0.0:
        return Fraction(sum(m != 0 for m in move))
    return sum((abs(m) if norm == 1.0 else m * m for m in move), Fraction(0))


def bound_power(radius: float, norm: float) -> Fraction:
    return Fraction(radius) ** 2 if norm == 2.0 else Fraction(radius)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_is_deterministic_and_the_same_alone_or_in_a_batch(name: str, norm: float) -> None:
    known = linear(norm, clip=True, dtype=torch.float64, seed=3)
    where = threat(name, known) if np.isfinite(known.distance).all() else Threat(norm, 3.0, known.threat.clip)
    first, again = (attack(name).run(known.model, known.x, known.criterion, where, seed=5) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.forward_calls, again.forward_calls)
    for i in (0, 3):
        single = attack(name).run(known.model, known.x[i : i + 1], Misclassified(known.label[i : i + 1]), where, seed=5,
                                  ids=torch.tensor([i]), pool=known.x)
        assert bool(single.success[0]) == bool(first.success[i])
        torch.testing.assert_close(single.x[0], first.x[i], rtol=1e-6, atol=1e-8)
        assert int(single.forward_calls[0]) == int(first.forward_calls[i])


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_queries_are_limited(name: str, norm: float) -> None:
    known = linear(norm)
    result = attack(name).run(known.model, known.x, known.criterion, threat(name, known), queries=7)
    assert int(result.forward_calls.max()) <= 7


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_pinned_features_stay(name: str, norm: float) -> None:
    known = linear(norm, clip=True)
    mask = torch.rand(known.x.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.6
    where = Threat(norm, math.inf if attack_class(name).minimum_norm else 2.0, (0.0, 1.0), mask)
    result = attack(name).run(known.model, known.x, known.criterion, where)
    assert torch.equal(result.x[:, ~mask], known.x[:, ~mask])
    assert torch.equal(result.last[:, ~mask], known.x[:, ~mask])


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_wrong_from_the_start_is_distance_zero(name: str, norm: float) -> None:
    known = linear(norm)
    wrong = Misclassified((known.label + 1) % 4)
    result = attack(name).run(known.model, known.x, wrong, threat(name, known))
    assert result.success.all()
    assert (result.distance == 0).all()
    assert (result.forward_calls == 1).all()


@pytest.mark.parametrize(("name", "norm"), FIXED)
def test_eps_zero_moves_nothing(name: str, norm: float) -> None:
    known = linear(norm)
    result = attack(name).run(known.model, known.x, known.criterion, Threat(norm, 0.0))
    assert torch.equal(result.x, known.x)
    assert not result.success.any()


@pytest.mark.parametrize(("name", "norm"), [(n, p) for n, p in CASES if attack_class(n).minimum_norm])
def test_nearest_points_of_a_linear_classifier(name: str, norm: float) -> None:
    """To 1 % in median, and none worse than half as far again."""
    for clip in (False, True):
        known = linear(norm, clip=clip, dtype=torch.float64, seed=2)
        exact = known.distance
        result = attack(name).run(known.model, known.x, known.criterion, known.threat)
        ratio = (result.distance.numpy() / exact)[np.isfinite(exact)]
        assert np.median(ratio) < 1.01, (clip, ratio)
        assert ratio.max() < 1.5, (clip, ratio)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_targets(name: str, norm: float) -> None:
    known = linear(norm)
    target = (known.label + 2) % 4
    where = threat(name, known, 8.0)
    result = attack(name).run(known.model, known.x, Misclassified(known.label, target), where)
    assert float(result.success.double().mean()) > 0.6
    assert torch.equal(known.model(result.x[result.success]).argmax(1), target[result.success])
