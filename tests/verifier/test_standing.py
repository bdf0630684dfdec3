"""What is said to stand stands: exact distances, attacks, and a network whose float32 sums cross the boundary."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bounds.graph import Graph
from tests.verifier.attacks.problems import Linear, linear
from tests.verifier.attacks.test_falsifier import network
from verifier.attacks.apgd import ApgdCe
from verifier.attacks.criterion import Misclassified
from verifier.attacks.threat import Threat
from verifier.standing import proved_standing


@pytest.mark.parametrize("norm", [math.inf, 2.0, 1.0])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_linear_classifiers_stand_up_to_their_exact_distance(norm: float, clip: tuple[float, float] | None) -> None:
    known = linear(norm, clip=clip is not None, count=8)
    assert isinstance(known.model, Linear)
    graph = Graph.from_torch(torch.nn.Sequential(torch.nn.Flatten(), dense(known.model)), (3, 4))
    far = np.where(np.isfinite(known.distance), known.distance, 10.0)
    for i in range(len(known.x)):
        x, label = known.x[i : i + 1], known.label[i : i + 1]
        assert bool(proved_standing(graph, x, label, Threat(norm, 0.99 * far[i], clip))[0])
        if np.isfinite(known.distance[i]):
            assert not bool(proved_standing(graph, x, label, Threat(norm, 1.001 * far[i] + 1e-6, clip))[0])


def dense(model: Linear) -> torch.nn.Linear:
    layer = torch.nn.Linear(model.weight.shape[1], model.weight.shape[0])
    layer.weight.data, layer.bias.data = model.weight.data, model.bias.data
    return layer


def test_no_attack_moves_what_is_proved() -> None:
    graph = network((6, 20, 20, 3), seed=4)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    label = graph(x).argmax(1)
    for eps in (0.05, 0.2):
        proved = proved_standing(graph, x, label, Threat(math.inf, eps))
        fell = ApgdCe(steps=40, restarts=2).run(graph, x, Misclassified(label), Threat(math.inf, eps)).success
        assert proved.any()
        assert fell.any()
        assert not (proved & fell).any()


def test_a_wrong_label_and_a_tie_do_not_stand() -> None:
    graph = network((2, 3), seed=0)
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    wrong = (graph(x).argmax(1) + 1) % 3
    assert not proved_standing(graph, x, wrong, Threat(math.inf, 0.0)).any()


def test_towards_one_class_more_stands() -> None:
    graph = network((6, 20, 3), seed=4)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    label = graph(x).argmax(1)
    keep = label != 2
    any_class = proved_standing(graph, x[keep], label[keep], Threat(math.inf, 0.1))
    one_class = proved_standing(graph, x[keep], label[keep], Threat(math.inf, 0.1), target=2)
    assert (one_class | ~any_class).all()
    assert one_class.sum() > any_class.sum()
