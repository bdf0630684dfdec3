"""One small module for each PyTorch operation, against the module itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.graph import Graph, InvalidNetwork, UnsupportedOperator
from bounds.graph.from_torch.table import FUNCTIONS, METHODS, MODULES
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear

ATOL = 1e-12  # float64, sums of at most some hundred terms
CONSTANT = torch.linspace(-1, 2, 3, dtype=torch.float64)
MATRIX = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(3, 4)


class Call(nn.Module):
    """A module whose forward is one function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


M = (2, 6, 8)
FUNCTIONAL: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (lambda x: F.linear(x, MATRIX.T, MATRIX[0]), (3,)),
    "matmul": (lambda x: x @ MATRIX, (3,)),
    "torch.matmul on the left": (lambda x: torch.matmul(MATRIX.T, x), (3, 2)),
    "mm": (lambda x: x.mm(MATRIX), (3,)),
    "addmm": (lambda x: torch.addmm(CONSTANT[0], x, MATRIX, beta=2, alpha=3), (3,)),
    "conv1d": (lambda x: F.conv1d(x, torch.ones(2, 3, 2, dtype=torch.float64), stride=2, padding=1), (3, 5)),
    "conv2d": (lambda x: F.conv2d(x, torch.ones(4, 1, 2, 3, dtype=torch.float64), groups=2, dilation=2), M),
    "conv2d same": (lambda x: F.conv2d(x, torch.ones(4, 2, 5, 3, dtype=torch.float64), padding="same"), M),
    "conv_transpose2d": (lambda x: F.conv_transpose2d(x, torch.ones(2, 3, 3, 3, dtype=torch.float64), stride=2,
                                                      padding=1, output_padding=1), M),
    "batch_norm": (lambda x: F.batch_norm(x, CONSTANT, CONSTANT.abs() + 1, CONSTANT), (3, 2)),
    "relu": (F.relu, (3,)),
    "torch.relu": (torch.relu, (3,)),
    "relu method": (lambda x: x.relu(), (3,)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), (3,)),
    "prelu": (lambda x: F.prelu(x, CONSTANT), (3, 2)),
    "elu": (lambda x: F.elu(x, 0.7), (3,)),
    "softplus": (lambda x: F.softplus(x, 2.0, 10.0), (3,)),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.3), (3,)),
    "relu6": (lambda x: F.relu6(4 * x), (3,)),
    "clamp": (lambda x: x.clamp(-0.2, 0.3), (3,)),
    "clamp from below": (lambda x: torch.clamp(x, min=-0.1), (3,)),
    "sigmoid": (lambda x: torch.sigmoid(x), (3,)),
    "tanh": (lambda x: x.tanh(), (3,)),
    "softmax": (lambda x: F.softmax(x, dim=1), (3, 2)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), M),
    "max_pool2d with settings": (lambda x: F.max_pool2d(x, (3, 2), stride=2, padding=1, ceil_mode=True), M),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1), M),
    "avg_pool2d without padding counted": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), M),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3), (2, 7)),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (3, 1)), M),
    "flatten": (lambda x: torch.flatten(x, 1), M),
    "flatten in part": (lambda x: x.flatten(2, -1), M),
    "reshape": (lambda x: x.reshape(x.shape[0], -1), M),
    "view": (lambda x: x.view(-1, 12, 8), M),
    "view of sizes": (lambda x: x.view(x.size(0), x.size(1) * 2, -1), M),
    "unflatten": (lambda x: x.unflatten(1, (2, -1)), (6,)),
    "squeeze": (lambda x: x.squeeze(2), (3, 1)),
    "unsqueeze": (lambda x: x.unsqueeze(-1).unsqueeze(1), (3,)),
    "permute": (lambda x: x.permute(0, 2, 3, 1), M),
    "transpose": (lambda x: x.transpose(1, -1), M),
    "mT": (lambda x: x.mT, M),
    "swap inside a product": (lambda x: (MATRIX.t() @ x.transpose(1, 2)).transpose(1, 2), (2, 3)),
    "cat": (lambda x: torch.cat([x, -x, x], 1), (3,)),
    "stack": (lambda x: torch.stack([x, 2 * x], 1), (3,)),
    "split": (lambda x: torch.cat([x.split([1, 3], 1)[1], x.split([1, 3], 1)[0]], 1), (4,)),
    "split in equal parts": (lambda x: x.split(3, dim=1)[1], (4,)),
    "chunk": (lambda x: torch.chunk(x, 2, 1)[0] - x.chunk(2, 1)[1], (4,)),
    "slice": (lambda x: x[:, 1:5:2], (6,)),
    "ellipsis and None": (lambda x: x[..., None, 2:], M),
    "integer index": (lambda x: x[:, 1, :, -1], M),
    "list index": (lambda x: x[:, [2, 0, 2]], (3,)),
    "tensor index": (lambda x: x[:, torch.tensor([[0, 1], [2, 2]])], (3, 2)),
    "narrow": (lambda x: x.narrow(1, 1, 2), (4,)),
    "select": (lambda x: x.select(2, 3), M),
    "index_select": (lambda x: x.index_select(1, torch.tensor([1, 0])), (4,)),
    "flip": (lambda x: x.flip(1), (4,)),
    "expand": (lambda x: x.expand(-1, 2, 3), (1, 3)),
    "sum": (lambda x: x.sum(1), (3, 2)),
    "sum over several axes": (lambda x: torch.sum(x, dim=(1, 3), keepdim=True), M),
    "mean": (lambda x: x.mean(dim=(2, 3)), M),
    "add": (lambda x: x + CONSTANT, (3,)),
    "add from the left": (lambda x: 1.5 + x, (3,)),
    "add with alpha": (lambda x: torch.add(x, x.relu(), alpha=2), (3,)),
    "add that enlarges": (lambda x: x + MATRIX, (3, 1)),
    "sub": (lambda x: x - CONSTANT, (3,)),
    "sub from a constant": (lambda x: 1 - x, (3,)),
    "rsub": (lambda x: torch.rsub(x, CONSTANT), (3,)),
    "sub of activations": (lambda x: x - x.relu(), (3,)),
    "mul": (lambda x: x * CONSTANT, (3,)),
    "mul from the left": (lambda x: 2 * x, (3,)),
    "div": (lambda x: x / (CONSTANT + 3), (3,)),
    "neg": (lambda x: -x, (3,)),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), M),
    "pad reflect": (lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"), M),
    "pad replicate": (lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"), M),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), (3,)),
    "contiguous and to": (lambda x: x.contiguous().clone().to(x.dtype).to(x.device).double(), (3,)),
    "questions about shapes": (lambda x: x * (x.dim() + x.ndim + x.numel() // x.shape[0]), (3,)),
    "in place": (lambda x: (x + 1).mul_(2).add_(CONSTANT), (3,)),
    "constants of constants": (lambda x: x * (CONSTANT.exp() + 1).sum(), (3,)),
}

class Token(nn.Module):
    """Fixed tokens joined to each sample."""

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4), requires_grad=learned)
        self.register_buffer("fixed", torch.randn(1, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return torch.cat([self.token.expand(batch, -1, -1), x, self.fixed.repeat(batch, 1, 1)], dim=1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(3, 4), (3,)),
    "Linear on three axes": (lambda: nn.Linear(3, 4), (2, 3)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, (2, 3), groups=2, dilation=(2, 1)), M),
    "Conv2d padding reflect": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), M),
    "Conv2d padding circular": (lambda: nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"), M),
    "Conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), M),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3), (3,)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2, affine=False), M),
    "ReLU": (lambda: nn.ReLU(), (3,)),
    "ReLU in place": (lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), (3,)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.1), (3,)),
    "PReLU": (lambda: nn.PReLU(2), M),
    "PReLU with one slope": (lambda: nn.PReLU(), M),
    "ELU": (lambda: nn.ELU(0.5), (3,)),
    "Softplus": (lambda: nn.Softplus(), (3,)),
    "Hardtanh": (lambda: nn.Hardtanh(-0.5, 0.5), (3,)),
    "ReLU6": (lambda: nn.ReLU6(), (3,)),
    "Sigmoid": (lambda: nn.Sigmoid(), (3,)),
    "Tanh": (lambda: nn.Tanh(), (3,)),
    "Softmax": (lambda: nn.Softmax(dim=-1), (2, 3)),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), (2, 7)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), M),
    "AvgPool2d": (lambda: nn.AvgPool2d(2, ceil_mode=True), M),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(1), M),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(2), (2, 6)),
    "Flatten": (lambda: nn.Flatten(), M),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 3)), (6,)),
    "Dropout": (lambda: nn.Dropout(), (3,)),
    "joined tokens": (Token, (3, 4)),
    "Identity": (lambda: nn.Sequential(nn.Identity(), nn.ReLU()), (3,)),
    "ZeroPad2d": (lambda: nn.ZeroPad2d((1, 0, 2, 1)), M),
    "ConstantPad1d": (lambda: nn.ConstantPad1d((1, 2), 0.3), (2, 3)),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(2), M),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d((2, 1, 0, 3)), M),
    "CircularPad2d": (lambda: nn.CircularPad2d(1), M),
}

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: (partial(Call, f), shape) for name, (f, shape) in FUNCTIONAL.items()},
    **LAYERS,
}


def unlike_default(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return module.double().eval()


@pytest.mark.parametrize("name", CASES)
def test_graph_equals_module_and_so_do_its_gradients(name: str) -> None:
    torch.manual_seed(0)
    make, shape = CASES[name]
    module = unlike_default(make())
    graph = Graph.from_torch(module, shape)
    graph = graph.to(dtype=torch.float64)  # numbers in a module without tensors are read in the default dtype
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    expected, got = module(x.clone()), graph(x)
    assert tuple(got.shape[1:]) == graph.output_shape
    torch.testing.assert_close(got.reshape(expected.shape), expected, atol=ATOL, rtol=0)
    wanted = (x, *(p for p in module.parameters() if p.requires_grad))
    A = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(got.reshape(A.shape), wanted, A), torch.autograd.grad(expected, wanted, A),
                    strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_tables_name_existing_things() -> None:
    assert all(hasattr(Tensor, name) for name in METHODS)
    assert all(callable(f) for f in FUNCTIONS)
    assert all(issubclass(m, nn.Module) for m in MODULES)


class Block(nn.Module):
    """A residual block as torchvision writes it, with in-place operations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def resnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), Block(4), Block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Dropout(), nn.Linear(4, 5))


def test_residual_network_equals_its_graph() -> None:
    torch.manual_seed(0)
    module = unlike_default(resnet())
    graph = Graph.from_torch(module, (3, 9, 9))
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(graph(x), module(x), atol=ATOL, rtol=0)
    torch.testing.assert_close(graph.simplify()(x), module(x), atol=1e-11, rtol=0)


def test_operators_hold_the_modules_own_tensors() -> None:
    module = resnet()
    graph = Graph.from_torch(module, (3, 9, 9))
    by_name = {n.name: n.op for n in graph.nodes}
    stem, norm, head = by_name["0"], by_name["1.bn1"], by_name["6"]
    assert isinstance(stem, Conv)
    assert stem.weight is module[0].weight  # type: ignore[index]
    assert isinstance(norm, BatchNorm)
    assert norm.mean is module[1].bn1.running_mean  # type: ignore[index]
    assert isinstance(head, Linear)
    assert head.bias is module[6].bias  # type: ignore[index]
    held = {id(p) for p in graph.parameters()}
    assert all(id(p) in held for p in module.parameters())


def test_training_the_module_changes_the_graph() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = Graph.from_torch(module, (3,))
    x = torch.randn(8, 3)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    before = graph(x).detach()
    for _ in range(3):
        optimiser.zero_grad()
        graph(x).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(graph(x), module(x))
    assert not torch.allclose(graph(x), before)


def test_tracing_restores_training_modes() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval(), nn.Linear(3, 2)).train()
    module[1].eval()
    Graph.from_torch(module, (3,))
    assert [m.training for m in module] == [True, False, True]


def test_a_module_called_twice_gives_two_names() -> None:
    layer = nn.Linear(3, 3)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    graph = Graph.from_torch(Twice(), (3,))
    assert [n.name for n in graph.nodes] == ["input", "layer", "layer@1"]
    assert len(graph.parameters()) == 2


def test_a_parameter_in_a_difference_stays_shared() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centre = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x - self.centre

    module = Shifted()
    graph = Graph.from_torch(module, (3,))
    assert any(p is module.centre for p in graph.parameters())
    x = torch.randn(2, 3)
    assert torch.equal(graph(x), module(x))


class Weighted(nn.Module):
    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


def test_a_view_of_a_parameter_follows_its_training() -> None:
    module = Weighted(lambda x, w: x @ w.t())
    graph = Graph.from_torch(module, (3,))
    x = torch.randn(2, 3)
    for _ in range(2):
        torch.testing.assert_close(graph(x), module(x))
        (gradient,) = torch.autograd.grad(graph(x).sum(), module.weight)
        torch.testing.assert_close(gradient, torch.autograd.grad(module(x).sum(), module.weight)[0])
        with torch.no_grad():
            module.weight.mul_(3)


def overwrite_then_read(x: Tensor) -> Tensor:
    h = x + 1
    y = h.relu_()
    return y + h


def overwrite_a_view(x: Tensor) -> Tensor:
    h = x + 1
    h.view(-1).mul_(2)
    return h * 3


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "module": (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.GELU())), (3,), r"Sequential: GELU \(module '1.0'\)"),
    "function": (Call(torch.sin), (3,), "sin .*no sound bounds"),
    "method": (Call(lambda x: x.cumsum(1)), (3,), "cumsum .*no sound bounds"),
    "product of activations": (Call(lambda x: x * x), (3,), "mul .*product of two activations"),
    "matrix product of activations": (Call(lambda x: x @ x.mT), (3, 3), "matmul .*product of two activations"),
    "division by an activation": (Call(lambda x: 1 / x), (3,), "division by an activation"),
    "branch on values": (Call(branch), (3,), "cannot be recorded"),
    "overwritten value read later": (Call(overwrite_then_read), (3,), "relu_ .*overwrites a value in place"),
    "overwritten through a view": (Call(overwrite_a_view), (3,), "mul_ .*overwrites a value in place"),
    "dropout in training": (Call(lambda x: F.dropout(x, training=True)), (3,), "training=True"),
    "batch norm without statistics": (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), (3,),
                                      r"BatchNorm1d \(module '0'\): .*running statistics"),
    "mask": (Call(lambda x: x[:, torch.tensor([True, False, True])]), (3,), "mask"),
    "parameter computed": (Weighted(lambda x, w: x @ w.exp()), (3,), "exp .*computes with parameters"),
    "parameter joined": (Token(learned=True), (3, 4), "cat .*computes with parameters"),
    "other dtype": (nn.Sequential(nn.Linear(3, 2), Call(lambda x: x.half())), (3,), "half"),
    "uneven adaptive pooling": (nn.AdaptiveAvgPool1d(2), (1, 3), "unequal size"),
    "return_indices": (Call(lambda x: F.max_pool1d(x, 2, return_indices=True)[0]), (1, 4), "max_pool1d"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_with_its_place(name: str) -> None:
    module, shape, reason = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=reason):
        Graph.from_torch(module, shape)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def not_finite() -> nn.Module:
    module = nn.Linear(3, 2)
    module.weight.data[1, 2] = torch.nan
    return module


INVALID: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "two inputs": (TwoInputs(), (3,), "TwoInputs: expected one input"),
    "two outputs": (Call(lambda x: (x, x)), (3,), "several values"),
    "constant output": (Call(lambda x: CONSTANT), (3,), "depends on the input"),
    "wrong features": (nn.Sequential(nn.Linear(3, 2)), (4,), r"Linear \(module '0'\): .*3 inputs"),
    "wrong channels": (nn.Sequential(nn.Conv2d(3, 2, 1)), M, r"Conv2d \(module '0'\)"),
    "NaN weight": (not_finite(), (3,), "'weight' has a value that is not finite"),
    "empty shape": (nn.ReLU(), (0, 3), "positive sizes"),
}


@pytest.mark.parametrize("name", INVALID)
def test_modules_out_of_scope_are_refused(name: str) -> None:
    module, shape, reason = INVALID[name]
    with pytest.raises(InvalidNetwork, match=reason):
        Graph.from_torch(module, shape)
