"""Networks as ONNX files: the module, its graph, the file's graph and onnxruntime compute the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bounds import Box, compute_bounds
from bounds.graph import Graph, UnsupportedOperator
from certify.export import export_onnx, to_onnx
from tests.certify.models.tiny import SHAPE, TINY, network


def replayed(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def written(net: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    export_onnx(net, shape, folder / "net.onnx")
    return folder / "net.onnx"


@pytest.mark.parametrize("name", TINY)
def test_every_model_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    net = network(name)
    path = written(net, SHAPE, tmp_path)
    traced, read = Graph.from_torch(net, SHAPE), Graph.from_onnx(path)
    for batch in (1, 3):
        x = torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = net(x)
            assert float(expected.std()) > 1e-3, "the logits depend on something"
            for found in (traced(x), read(x), replayed(path, x)):
                same(found, expected)


@pytest.mark.parametrize("method", ["ibp", "crown"])
@pytest.mark.parametrize("name", TINY)
def test_bounds_of_the_file_are_those_of_the_module(name: str, method: str, tmp_path: Path) -> None:
    net = network(name)
    read = Graph.from_onnx(written(net, SHAPE, tmp_path))
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    sets = Box((x - 0.01).clamp(min=0), (x + 0.01).clamp(max=1))
    with torch.no_grad():
        of_module, of_file = (compute_bounds(g, sets, method=method) for g in (Graph.from_torch(net, SHAPE), read))
    scale = float(of_module.upper.abs().max())
    for end in ("lower", "upper"):
        torch.testing.assert_close(getattr(of_file, end), getattr(of_module, end), rtol=1e-4,
                                   atol=1e-4 * scale)


class Rest(nn.Module):
    """The rows that no model of the registry uses."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.plain = nn.Linear(4, 3), nn.Linear(3, 3, bias=False)
        self.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.most = nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2), ceil_mode=True)
        self.norm = nn.BatchNorm2d(2, affine=False)
        self.grouped = nn.Conv2d(2, 4, (2, 3), (1, 2), (1, 1), (2, 1), groups=2, bias=False)
        self.last = nn.Linear(16, 5)
        nn.init.constant_(self.norm.running_mean, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.most(functional.leaky_relu(self.grouped(self.norm(self.pool(x))), 0.2)).mean((2, 3))
        rows = torch.sigmoid(self.plain(torch.tanh(self.rows(x.reshape(-1, 2, 18, 4)))))
        sums = (rows * 3.0 - 1.5).sum((1, 2, 3), keepdim=True) / 7.0
        table = maps.reshape(-1, 1, 4, 1) - maps.reshape(-1, 1, 1, 4)
        return self.last((table + sums).flatten(1))


def test_every_other_row_computes_what_the_module_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Rest().eval()
    path = written(net, (2, 8, 9), tmp_path)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert kinds >= {"AveragePool", "MaxPool", "LeakyRelu", "Sigmoid", "Tanh", "ReduceMean", "ReduceSum", "MatMul",
                     "Mul", "Div", "Sub", "Reshape"}
    x = torch.rand(3, 2, 8, 9)
    with torch.no_grad():
        same(replayed(path, x), net(x))
        same(Graph.from_onnx(path)(x), net(x))


def test_a_parameter_used_twice_is_stored_once(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    path = written(net, (4,), tmp_path)
    assert len(onnx.load(path).graph.initializer) == 2
    x = torch.rand(3, 4)
    same(replayed(path, x), net(x).detach())


def test_float64_stays_float64(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    found = replayed(written(net, (4,), tmp_path), x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, net(x).detach(), rtol=1e-12, atol=1e-12)


def test_a_module_in_training_is_written_as_it_evaluates(tmp_path: Path) -> None:
    net = network("cnn5").train()
    x = torch.rand(3, *SHAPE)
    found = replayed(written(net, SHAPE, tmp_path), x)
    assert net.training
    with torch.no_grad():
        same(found, net.eval()(x))


def test_names_and_producer_are_what_was_asked_for() -> None:
    model = to_onnx(Graph.from_torch(nn.Sequential(nn.Linear(2, 2)), (2,)), name="toy", ends=("x", "y"), producer="me")
    assert (model.graph.name, model.producer_name) == ("toy", "me")
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["x", "y"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_what_has_no_row_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=r"Softplus \(node 1\)"):
        export_onnx(nn.Sequential(nn.Linear(2, 2), nn.Softplus()), (2,), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_folded_graph_is_refused() -> None:
    graph = Graph.from_torch(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval(), (1, 2, 2)).simplify()
    with pytest.raises(ValueError, match="folded"):
        to_onnx(graph)


def test_a_graph_that_computes_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedOperator, match="computes something"):
        to_onnx(Graph.from_torch(nn.Sequential(nn.Identity()), (2,)))


def test_values_of_a_file_read_back_are_its_parameters(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model = onnx.load(written(net, (1, 2, 2), tmp_path))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    layer = net[1]
    assert isinstance(layer, nn.Linear)
    assert set(stored) == {"logits.weight", "logits.bias"}
    assert np.array_equal(stored["logits.weight"], layer.weight.detach().numpy())
