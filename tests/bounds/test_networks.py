"""The random test networks themselves: reproducible, well shaped, and the samples stay in their boxes."""

from __future__ import annotations

import pytest
import torch

from tests.bounds.networks import ACTIVATIONS, KINDS, random_box, random_graph, samples


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_graph_is_reproducible_and_runs_on_a_batch(kind: str, activation: str) -> None:
    for seed in range(3):
        graph, again = random_graph(seed, kind, activation), random_graph(seed, kind, activation)
        x = torch.randn(4, *graph.input_shape, dtype=torch.float64)
        values = graph.values(x)
        assert all(v.shape[1:] == n.shape for v, n in zip(values, graph.nodes, strict=True))
        torch.testing.assert_close(graph(x), again(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_stay_in_the_box(kind: str) -> None:
    graph = random_graph(0, kind)
    sets = random_box(graph, 1, batch=3)
    x = samples(sets, 10)
    assert bool((x >= sets.lower[:, None]).all() and (x <= sets.upper[:, None]).all())
    assert bool((sets.lower < sets.upper).any()), "a box with no width tests nothing"
