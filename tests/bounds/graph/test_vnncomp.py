"""Every competition network: equal to onnxruntime where it is accepted, refused by an operator's name where not."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest
import torch

from bounds.graph import Graph, UnsupportedOperator
from tests.bounds.graph.models import assert_equal_within_rounding, replay

pytestmark = pytest.mark.shared

ACCEPTED = [
    "acasxu", "cersyve", "cgan", "cifar10_resnet_2021", "collins_rul_cnn", "cora", "dist_shift", "eran_2021",
    "linearizenn", "malbeware", "marabou_cifar10_2021", "mnist_fc", "oval21", "reach_prob_density", "rl_benchmarks",
    "safenlp", "sat_relu", "sri_resnet_a", "sri_resnet_b", "tllverifybench", "verivital_2021", "yolo",
]
PARTLY = ["lsnc", "ml4acopf", "nn4sys", "traffic_signs_recognition", "vit"]
# Both sides compute in float32 and sum in different orders. Over n terms and L layers they differ by about
# sqrt(n) L 2^-24 = 1e-6 of the largest value in the network, which outputs that cancel stay far below.
ROUNDING = 3e-6
LIMIT_S = 10.0


def networks(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "onnx").rglob("*") if p.name.endswith((".onnx", ".onnx.gz")))


def check(stored: Path) -> None:
    path = Path(str(stored).removesuffix(".gz"))
    graph = Graph.from_onnx(path)
    data = gzip.decompress(stored.read_bytes()) if stored.suffix == ".gz" else stored.read_bytes()
    x = torch.rand(2, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    expected = replay(data, graph, x)
    scale = max(float(v.abs().max()) for v in graph.values(x))
    for twin in (graph, graph.simplify()):
        torch.testing.assert_close(twin(x).reshape(2, -1), expected, atol=ROUNDING * scale, rtol=0)


@pytest.mark.parametrize("name", ACCEPTED)
def test_network_is_accepted_and_equals_onnxruntime(name: str, shared: Path) -> None:
    found = networks(shared / "vnncomp" / name)
    assert found, f"no networks in {name}"
    if name == "tllverifybench":
        found = [p for p in found if "=64_" not in p.name and "=56_" not in p.name and "=48_" not in p.name]
    for path in found:
        check(path)


def test_largest_network_is_read_and_simplified_in_seconds(shared: Path) -> None:
    """67 million parameters, mostly zeros, in dense matrices: no copies beyond the file's own, no slow loops."""
    start = time.monotonic()
    graph = Graph.from_onnx(shared / "vnncomp/tllverifybench/onnx/tllBench_n=2_N=M=64_m=1_instance_7_2.onnx")
    x = torch.rand(1, 2)
    simple = graph.simplify()
    elapsed = time.monotonic() - start
    assert_equal_within_rounding(simple(x), graph(x), ROUNDING)
    assert sum(p.numel() for p in graph.parameters()) > 67_000_000
    assert elapsed < LIMIT_S, f"{elapsed:.1f} s"


@pytest.mark.parametrize("name", PARTLY)
def test_network_is_accepted_or_refused_by_operator_name(name: str, shared: Path) -> None:
    for stored in networks(shared / "vnncomp" / name):
        message = None
        try:
            check(stored)
        except UnsupportedOperator as error:
            message = str(error)
        assert message is None or message.startswith(str(stored).removesuffix(".gz") + ": ")
        assert message is None or "(node " in message
