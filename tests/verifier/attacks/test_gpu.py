"""On a GPU attacks find what they find on the CPU, and everything stays there."""

from __future__ import annotations

import math

import pytest
import torch

from tests.verifier.attacks.problems import linear
from verifier.attacks.criterion import Misclassified
from verifier.attacks.registry import attack_named
from verifier.attacks.threat import Threat

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("name", "settings"), [
    ("pgd", {"steps": 40}), ("apgd-t", {"steps": 30}), ("fmn", {"steps": 100}), ("fab", {"steps": 20}),
    ("square", {"steps": 300}), ("nes", {"steps": 20}), ("hopskipjump", {"steps": 10})])
def test_finds_on_the_gpu_what_it_finds_on_the_cpu(name: str, settings: dict[str, object]) -> None:
    known = linear(math.inf, clip=True, dtype=torch.float64)
    attack = attack_named(name, **settings)
    eps = math.inf if attack.minimum_norm else 1.3 * float(known.distance.max())
    threat = Threat(math.inf, eps, (0.0, 1.0))
    cpu = attack.run(known.model, known.x, known.criterion, threat)
    gpu = attack.run(known.model.to("cuda"), known.x, Misclassified(known.label.to("cuda")), threat)
    assert gpu.x.is_cuda
    assert torch.equal(gpu.success.cpu(), cpu.success)
    torch.testing.assert_close(gpu.distance.cpu(), cpu.distance, rtol=1e-3, atol=1e-6)
