"""The simplified twin: the same function, fewer nodes, and parameters as close to the exact ones as it says."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bounds.graph import Graph
from bounds.ops.conv import Conv
from bounds.ops.linear import Linear
from bounds.ops.scale import Scale

ROUNDING = 3e-6  # float32, a few layers of at most a hundred terms


class Affinely(nn.Module):
    """x * factor + shift."""

    def __init__(self, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.1307) / 0.3081


class Permute(nn.Module):
    def __init__(self, *perm: int) -> None:
        super().__init__()
        self.perm = perm

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.perm)


def channels(n: int) -> Affinely:
    return Affinely(torch.randn(n, 1, 1), torch.randn(n, 1, 1))


def trained(module: nn.Module) -> nn.Module:
    """Statistics and weights away from their defaults."""
    for m in module.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_()
            m.running_var.uniform_(0.3, 2)
            m.weight.data.normal_()
            m.bias.data.normal_()
    return module


# name: module, input shape, operators that remain
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "linear, batch norm": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), (4,), ["Linear"]),
    "batch norm, linear": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)), (4,), ["Linear"]),
    "conv, batch norm": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, bias=False, padding=1), nn.BatchNorm2d(3)), (2, 5, 5),
                         ["Conv"]),
    "conv with groups, batch norm": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 5, 5),
                                     ["Conv"]),
    "batch norm, conv": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)), (4, 5, 5), ["Conv"]),
    "batch norm, padded conv": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1)), (2, 5, 5),
                                ["Scale", "Conv"]),
    "transposed conv, batch norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6)), (4, 3, 3),
        ["ConvTranspose"]),
    "batch norm, transposed conv": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 3, 3)), (2, 3, 3),
                                    ["Scale", "ConvTranspose"]),
    "batch norm after ReLU": (lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), (4,), ["Relu", "Scale"]),
    "normalise, flatten, linear": (lambda: nn.Sequential(Normalise(), nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2),
                                   ["Reshape", "Linear"]),
    "normalise channels, flatten, linear": (lambda: nn.Sequential(channels(3), nn.Flatten(), nn.Linear(12, 3)),
                                            (3, 2, 2), ["Reshape", "Linear"]),
    "normalise channels, conv": (lambda: nn.Sequential(channels(3), nn.Conv2d(3, 2, 2)), (3, 3, 3), ["Conv"]),
    "scaling of each cell, conv": (
        lambda: nn.Sequential(Affinely(torch.randn(3, 3, 3), torch.randn(())), nn.Conv2d(3, 2, 2)), (3, 3, 3),
        ["Scale", "Conv"]),
    "conv, scaling of each row": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 2), Affinely(torch.randn(2, 1), torch.randn(1))), (3, 3, 3),
        ["Conv", "Scale"]),
    "scalings": (lambda: nn.Sequential(channels(3), Normalise(), channels(3)), (3, 2, 2), ["Scale"]),
    "two linear layers": (lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4)), (3,), ["Linear"]),
    "two linear layers whose product is larger": (lambda: nn.Sequential(nn.Linear(9, 1), nn.Linear(1, 9)), (9,),
                                                  ["Linear", "Linear"]),
    "three linear layers": (lambda: nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 9), nn.Linear(9, 4)), (2,), ["Linear"]),
    "linear, reshape, reshape, linear": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Linear(8, 2)), (3,),
        ["Linear"]),
    "permutations": (lambda: nn.Sequential(Permute(0, 2, 3, 1), Permute(0, 3, 1, 2), nn.ReLU()), (2, 3, 4), ["Relu"]),
    "permutation of axes of size one": (lambda: nn.Sequential(Permute(0, 2, 3, 1), nn.ReLU()), (1, 3, 4),
                                        ["Reshape", "Relu"]),
    "zero padding, conv": (lambda: nn.Sequential(nn.ZeroPad2d((1, 1, 2, 2)), nn.Conv2d(1, 2, 3, padding=1)), (1, 4, 4),
                           ["Conv"]),
    "uneven padding, conv": (lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 0)), nn.Conv2d(1, 2, 3)), (1, 4, 4),
                             ["Pad", "Conv"]),
    "padding with ones, conv": (lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(1, 2, 3)), (1, 4, 4),
                                ["Pad", "Conv"]),
    "identities": (lambda: nn.Sequential(nn.Identity(), nn.Dropout(), nn.Flatten(), nn.ReLU(), nn.Flatten()), (4,),
                   ["Relu"]),
    "scaling by one": (lambda: nn.Sequential(Affinely(torch.ones(4), torch.zeros(4)), nn.ReLU()), (4,), ["Relu"]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_stay_and_nodes_go(name: str) -> None:
    torch.manual_seed(0)
    make, shape, kinds = CASES[name]
    module = trained(make()).eval()
    graph = Graph.from_torch(module, shape)
    simple = graph.simplify()
    assert [n.op.kind for n in simple.nodes[1:]] == kinds
    x = torch.randn(5, *shape)
    expected = module(x)
    torch.testing.assert_close(simple(x), expected, atol=ROUNDING * float(expected.detach().abs().max()), rtol=0)
    assert simple.output_shape == graph.output_shape
    double = graph.to(dtype=torch.float64).simplify()
    torch.testing.assert_close(double(x.double()), graph.to(dtype=torch.float64)(x.double()), atol=1e-12, rtol=1e-12)


def exact_affine(module: nn.Module, x: list[Fraction]) -> list[Fraction]:
    """The module's value in rationals, by its own plain loops over the stored numbers."""
    def numbers(t: Tensor) -> Any:
        return [numbers(row) for row in t] if t.dim() else Fraction(float(t.detach().double()))

    if isinstance(module, nn.Sequential):
        for m in module:
            x = exact_affine(m, x)
        return x
    if isinstance(module, nn.Linear):
        return [sum((w * v for w, v in zip(row, x, strict=True)), b)
                for row, b in zip(numbers(module.weight), numbers(module.bias), strict=True)]
    assert isinstance(module, Affinely), "the rational oracle knows dense layers and scalings"
    return [v * f + s for v, f, s in zip(x, numbers(module.factor), numbers(module.shift), strict=True)]


def test_fold_errors_bound_the_distance_to_exact_rational_parameters() -> None:
    """Weight and bias of the fused layer, against the composition computed in rationals."""
    torch.manual_seed(1)
    module = nn.Sequential(Affinely(torch.randn(3), torch.randn(3)), nn.Linear(3, 6), nn.Linear(6, 4),
                           Affinely(torch.randn(4), torch.randn(4)))
    simple = Graph.from_torch(module, (3,)).simplify()
    op, error = simple.nodes[1].op, simple.fold_errors[1]
    assert isinstance(op, Linear), "all four fuse"
    assert op.weight.dtype == torch.float32
    assert error.weight is not None
    assert error.bias is not None
    bias = exact_affine(module, [Fraction(0)] * 3)
    for k in range(3):
        column = exact_affine(module, [Fraction(int(i == k)) for i in range(3)])
        for j in range(4):
            distance = abs(Fraction(float(op.weight[j, k])) - (column[j] - bias[j]))
            assert distance <= Fraction(float(error.weight[j, k]))
    for j in range(4):
        assert abs(Fraction(float(op.bias[j])) - bias[j]) <= Fraction(float(error.bias[j]))
    # One rounding to float32, and hardly more.
    assert bool((error.weight <= 2.0**-24 * op.weight.abs().double() * 1.001 + 1e-14).all())


@pytest.mark.parametrize("name", [n for n in CASES if "conv" in n or "norm" in n])
def test_fold_errors_bound_the_distance_to_float64_parameters(name: str) -> None:
    """Folding in float64 errs by 1e-15; the float32 parameters must lie within their radii of those."""
    torch.manual_seed(2)
    make, shape, _ = CASES[name]
    graph = Graph.from_torch(trained(make()), shape)
    simple, double = graph.simplify(), graph.to(dtype=torch.float64).simplify()
    for i, (node, exact) in enumerate(zip(simple.nodes, double.nodes, strict=True)):
        error = simple.fold_errors.get(i)
        for attribute in ("weight", "bias", "factor", "shift"):
            stored = getattr(node.op, attribute, None)
            if stored is None:
                continue
            radius = None if error is None else error.weight if attribute in ("weight", "factor") else error.bias
            allowed = 1e-14 + (torch.zeros(()) if radius is None else radius)
            assert bool(((stored.double() - getattr(exact.op, attribute)).abs() <= allowed).all()), attribute


def test_exact_folds_carry_no_error() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))
            self.bias = nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.weight + self.bias)

    module = Plain()
    simple = Graph.from_torch(module, (4,)).simplify()
    assert [n.op.kind for n in simple.nodes] == ["Input", "Linear", "Relu"]
    assert simple.fold_errors == {}
    op = simple.nodes[1].op
    assert isinstance(op, Linear)
    assert torch.equal(op.weight, module.weight.t())
    assert op.bias is not None
    assert torch.equal(op.bias, module.bias)


def test_simplified_graph_is_frozen() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), Affinely(torch.randn(3), torch.randn(3)))
    graph = Graph.from_torch(module, (4,))
    simple = graph.simplify()
    assert not any(p.requires_grad for p in simple.parameters())
    x = torch.randn(2, 4)
    before = simple(x)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(1)
    assert torch.equal(simple(x), before)
    assert not torch.equal(graph(x), before)


def test_a_layer_read_twice_is_not_folded() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return torch.relu(h) + self.second(h)

    module = Forked()
    simple = Graph.from_torch(module, (3,)).simplify()
    assert [n.op.kind for n in simple.nodes] == ["Input", "Linear", "Relu", "Linear", "Add"]
    x = torch.randn(4, 3)
    torch.testing.assert_close(simple(x), module(x))


def test_an_inner_output_is_not_folded_away() -> None:
    """A graph whose output is read by a later node keeps its value."""
    import dataclasses

    graph = Graph.from_torch(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (3,))
    inner = dataclasses.replace(graph, output=1)
    x = torch.randn(2, 3)
    torch.testing.assert_close(inner.simplify()(x), inner(x))


def test_a_fold_that_would_overflow_is_not_made() -> None:
    module = nn.Sequential(Affinely(torch.full((2,), 1e30), torch.zeros(2)),
                           Affinely(torch.full((2,), 1e30), torch.zeros(2)))
    simple = Graph.from_torch(module, (2,)).simplify()
    assert sum(isinstance(n.op, Scale) for n in simple.nodes) == 2
    assert float(simple(torch.full((1, 2), 1e-30))[0, 0]) == pytest.approx(1e30)


def test_simplifying_again_changes_nothing() -> None:
    torch.manual_seed(3)
    module = trained(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))
    simple = Graph.from_torch(module, (1, 4, 4)).simplify()
    again = simple.simplify()
    assert [n.op.kind for n in again.nodes] == [n.op.kind for n in simple.nodes]
    assert isinstance(again.nodes[1].op, Conv)
    assert torch.equal(again.nodes[1].op.weight, simple.nodes[1].op.weight)  # type: ignore[union-attr]
    assert set(again.fold_errors) == set(simple.fold_errors)


def test_batch_norm_in_training_is_refused() -> None:
    import dataclasses

    graph = Graph.from_torch(nn.Sequential(nn.BatchNorm1d(3)), (3,))
    node = graph.nodes[1]
    training = dataclasses.replace(node, op=dataclasses.replace(node.op, training=True))
    with pytest.raises(ValueError, match="training mode"):
        dataclasses.replace(graph, nodes=(graph.nodes[0], training)).simplify()
