"""FGSM first, PGD later."""

from __future__ import annotations

import pytest
import torch

from certify.adversarial.fgsm import Fgsm
from certify.adversarial.fgsm_pgd import FgsmPgd
from certify.adversarial.pgd import Pgd
from certify.terms import Progress
from tests.certify.cases import network, step_of


@pytest.mark.parametrize(("epoch", "single"), [(0.0, True), (19.99, True), (20.0, False), (119.5, False)])
def test_the_first_20_of_120_epochs_are_fgsm(epoch: float, single: bool) -> None:
    net = network("conv", dtype=torch.float64)
    points = FgsmPgd(steps=3).points(step_of(net, progress=Progress(epoch, 120, 7)))
    expected = (Fgsm() if single else Pgd(steps=3)).points(step_of(net, progress=Progress(epoch, 120, 7)))
    assert torch.equal(points, expected)


def test_with_no_such_epochs_it_is_pgd() -> None:
    net = network("conv", dtype=torch.float64)
    assert torch.equal(FgsmPgd(first=0.0).points(step_of(net, progress=Progress(0, 120, 0))),
                       Pgd().points(step_of(net, progress=Progress(0, 120, 0))))
