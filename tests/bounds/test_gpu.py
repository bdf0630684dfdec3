"""Bounds on a CUDA device: enclosures stay on it, and agree with the CPU's."""

from __future__ import annotations

import pytest
import torch

from bounds.compute import METHODS, compute_bounds
from bounds.graph import Graph
from bounds.sets import LpBall
from tests.bounds.networks import ACTIVATIONS, KINDS, random_box, random_graph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

RTOL = {torch.float64: 1e-9, torch.float32: 1e-3}  # sums in another order, and slopes that follow them


def assert_agree(here: torch.Tensor, there: torch.Tensor) -> None:
    assert there.device.type == "cuda"
    rtol = RTOL[here.dtype]
    torch.testing.assert_close(there.cpu(), here, rtol=rtol, atol=rtol * (1 + float(here.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_bounds_agree_with_the_cpu(method: str, kind: str, dtype: torch.dtype) -> None:
    for activation in (*ACTIVATIONS, "mixed"):
        graph = random_graph(1, kind, activation, dtype)
        sets = random_box(graph, 2, batch=3)
        for form in (graph, graph.simplify()):
            here = compute_bounds(form, sets, None, method)
            there = compute_bounds(form.to(device="cuda"), sets.to(device="cuda"), None, method)
            assert here.upper is not None
            assert there.upper is not None
            assert_agree(here.lower, there.lower)
            assert_agree(here.upper, there.upper)


@pytest.mark.parametrize("p", [1, 2])
def test_balls_agree_with_the_cpu(p: int) -> None:
    graph = random_graph(3, "conv", "Relu", torch.float64)
    centre = torch.rand(4, *graph.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sets = LpBall(centre, 0.3, p, clip=(0, 1), mask=torch.arange(centre[0].numel()).view(graph.input_shape) % 3 > 0)
    here = compute_bounds(graph, sets)
    there = compute_bounds(graph.to(device="cuda"), sets.to(device="cuda"))
    assert_agree(here.lower, there.lower)


def test_a_module_on_the_device_is_read_there() -> None:
    class Flipped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), torch.nn.ReLU(), torch.nn.Flatten())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = self.layers(x.flip(3))
            return values

    module = Flipped().cuda()
    graph = Graph.from_torch(module, (1, 5, 5))
    x = torch.rand(3, 1, 5, 5, device="cuda")
    assert graph.device.type == "cuda"
    for form in (graph, graph.simplify()):
        torch.testing.assert_close(form(x), module(x), rtol=1e-3, atol=1e-4)
