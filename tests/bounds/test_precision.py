"""Reduced precision of products and convolutions is off while bounds are computed, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bounds.compute import compute_bounds
from bounds.precision import full_precision
from tests.bounds.networks import random_box, random_graph
from verifier import robustness, verify

BACKENDS: Any = torch.backends


def _switches() -> list[str]:
    return [BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cuda.matmul.fp32_precision,
            BACKENDS.mkldnn.conv.fp32_precision, BACKENDS.mkldnn.matmul.fp32_precision]


@pytest.fixture
def reduced() -> Iterator[list[str]]:
    before = BACKENDS.cuda.matmul.fp32_precision
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    yield _switches()
    BACKENDS.cuda.matmul.fp32_precision = before


def test_the_block_is_in_full_precision_and_leaves_no_trace(reduced: list[str]) -> None:
    assert "tf32" in reduced
    with full_precision():
        assert _switches() == ["ieee"] * 4
    assert _switches() == reduced
    with pytest.raises(RuntimeError, match="inside"), full_precision():
        raise RuntimeError("inside")
    assert _switches() == reduced


@pytest.mark.parametrize("door", ["compute_bounds", "verify"])
def test_bounds_are_computed_in_full_precision(
        door: str, reduced: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    graph = random_graph(1, "conv", "Relu", torch.float32)
    relu = type(next(n.op for n in graph.nodes if n.op.kind == "Relu"))
    forward = relu.forward

    def watched(self: Any, *inputs: torch.Tensor) -> torch.Tensor:
        seen.append(_switches())
        return forward(self, *inputs)

    monkeypatch.setattr(relu, "forward", watched)
    if door == "compute_bounds":
        compute_bounds(graph, random_box(graph, 2), method="ibp")
    else:
        x = torch.zeros(graph.input_shape).numpy()
        classes = torch.Size(graph.output_shape).numel()
        verify(graph, robustness(x, 0, 0.1, classes=classes), replayer=_Nothing(), method="ibp")
    assert seen
    assert all(switches == ["ieee"] * 4 for switches in seen)
    assert _switches() == reduced


class _Nothing:
    """A replayer that is never asked."""

    def run(self, x: Any) -> Any:
        raise AssertionError("no attack runs")
