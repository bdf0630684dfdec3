"""Auto-PGD: its schedule, its losses, and what it does where they are undefined."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.verifier.attacks.problems import bowl, linear
from verifier.attacks.apgd import ApgdCe, ApgdDlr, ApgdTargeted, _sparse
from verifier.attacks.criterion import Misclassified
from verifier.attacks.losses import dlr, dlr_targeted
from verifier.attacks.pgd import Pgd
from verifier.attacks.threat import Threat


def test_dlr_is_the_papers_quotient() -> None:
    y = torch.tensor([[3.0, 1.0, 0.5, -2.0], [0.0, 4.0, 1.0, 3.0]])
    label = torch.tensor([0, 3])
    torch.testing.assert_close(dlr(y, label), torch.tensor([-(3 - 1) / (3 - 0.5), -(3 - 4) / (4 - 1)]))
    torch.testing.assert_close(dlr_targeted(y, label, torch.tensor([2, 0])),
                               torch.tensor([-(3 - 0.5) / (3 - (0.5 - 2) / 2), -(3 - 0) / (4 - (1 + 0) / 2)]))


def test_losses_ignore_scale_and_shift() -> None:
    y = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label, target = torch.zeros(5, dtype=torch.long), torch.full((5,), 3)
    torch.testing.assert_close(dlr(7 * y + 3, label), dlr(y, label))
    torch.testing.assert_close(dlr_targeted(7 * y + 3, label, target), dlr_targeted(y, label, target))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("attack", [ApgdDlr(steps=20), ApgdTargeted(steps=20)])
def test_few_classes_use_the_difference_of_logits_and_say_so(classes: int, attack: ApgdDlr | ApgdTargeted) -> None:
    known = linear(math.inf, classes=classes)
    where = Threat(math.inf, 1.3 * float(known.distance.max()))
    result = attack.run(known.model, known.x, known.criterion, where)
    assert result.success.all()
    undefined = classes < (4 if isinstance(attack, ApgdTargeted) else 3)
    assert any("not defined" in note for note in result.notes) == undefined


def test_steps_are_gradients() -> None:
    known = linear(math.inf)
    where = Threat(math.inf, 0.3 * float(known.distance.min()))
    for steps in (1, 7, 30):
        result = ApgdCe(steps=steps).run(known.model, known.x, known.criterion, where)
        assert (result.backward_calls == steps).all()
        assert (result.forward_calls == steps + 2).all()  # the original, and the last point
    result = ApgdTargeted(steps=10, targets=2).run(known.model, known.x, known.criterion, where)
    assert (result.backward_calls == 20).all()


def test_finds_the_small_cap_of_a_bowl() -> None:
    """One per cent beyond the nearest point only a small cap of the ball succeeds: 40 steps of PGD of one size
    miss it, APGD halves its steps and lands in it."""
    known = bowl(features=10, count=8, dtype=torch.float64)
    hits = []
    for attack in (ApgdCe(steps=40), Pgd(steps=40, step_size=0.0625)):
        found = [attack.run(known.model, known.x[i : i + 1], Misclassified(known.label[i : i + 1]),
                            Threat(2.0, float(known.distance[i]) * 1.01)).success for i in range(8)]
        hits.append(int(torch.cat(found).sum()))
    assert hits[0] >= 7
    assert hits[1] < 4


def test_sparse_steps_move_a_share_of_the_features() -> None:
    slope = torch.tensor([[[4.0, -3.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, -5.0]]])
    step = _sparse(slope, torch.tensor([0.5, 0.25]))
    assert step[0].tolist() == [[0.5, -0.5], [0.0, 0.0]]
    assert step[1].tolist() == [[0.0, 0.0], [0.0, -1.0]]


class Masked(nn.Module):
    """A classifier whose cross-entropy has no gradient: huge logits saturate the softmax."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e4 * torch.stack([0.3 - x[:, 0], x[:, 0] - 0.3, -10 + 0 * x[:, 0], -20 + 0 * x[:, 0]], 1)


def test_the_logit_ratio_sees_through_a_saturated_softmax() -> None:
    x, label = torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    where = Threat(math.inf, 0.5)
    plain = Pgd(steps=20, random_start=False).run(Masked(), x, Misclassified(label), where)
    ratio = ApgdDlr(steps=20).run(Masked(), x, Misclassified(label), where)
    assert not plain.success.any()
    assert int(plain.zero_slopes[0]) == 20
    assert ratio.success.all()
