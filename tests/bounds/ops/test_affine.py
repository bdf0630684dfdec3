"""Every affine operator against slow oracles: PyTorch's or NumPy's own function, autograd, the dense Jacobian.

One row of CASES buys an operator the whole suite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bounds.interval import Interval
from bounds.ops.add import Add
from bounds.ops.avg_pool import AvgPool
from bounds.ops.base import Affine
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.concat import Concat
from bounds.ops.conv import Conv, conv_of
from bounds.ops.conv_transpose import ConvTranspose
from bounds.ops.divide import Divide
from bounds.ops.expand import Expand
from bounds.ops.gather import Gather
from bounds.ops.linear import Linear
from bounds.ops.matmul import MatMul
from bounds.ops.pad import Pad
from bounds.ops.reduce import Reduce
from bounds.ops.reshape import Reshape
from bounds.ops.scale import Scale
from bounds.ops.slice import Slice
from bounds.ops.transpose import Transpose

ATOL = 1e-10  # float64 sums of at most a few hundred terms of size one

_generator = torch.Generator().manual_seed(7)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    op: Affine
    shapes: tuple[tuple[int, ...], ...]
    reference: Callable[..., Tensor]


def conv_case(name: str, weight: Tensor, bias: Tensor | None, shape: tuple[int, ...], **settings: object) -> Case:
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.dim() - 2]
    return Case(f"conv {name}", conv_of(weight, bias, **settings), (shape,),
                lambda x: function(x, weight, bias, **settings))


def conv_transpose_case(name: str, weight: Tensor, bias: Tensor | None, shape: tuple[int, ...], stride: int = 1,
                        padding: int = 0, output_padding: int = 0, dilation: int = 1, groups: int = 1) -> Case:
    axes = weight.dim() - 2
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]
    op = ConvTranspose(weight, bias, (stride,) * axes, (padding,) * axes, (output_padding,) * axes, (dilation,) * axes,
                       groups)
    return Case(f"conv_transpose {name}", op, (shape,),
                lambda x: function(x, weight, bias, stride, padding, output_padding, groups, dilation))


def avg_pool_case(name: str, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
                  shape: tuple[int, ...], ceil: bool = False, count_padding: bool = False) -> Case:
    function = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    return Case(f"avg_pool {name}", AvgPool(kernel, stride, padding, padding, ceil, count_padding), (shape,),
                lambda x: function(x, kernel, stride, padding, ceil, count_padding))


def batch_norm_case(name: str, shape: tuple[int, ...], affine: bool) -> Case:
    channels = shape[0]
    weight, bias = (rand(channels), rand(channels)) if affine else (None, None)
    mean, variance = rand(channels), rand(channels).abs() + 0.1
    return Case(f"batch_norm {name}", BatchNorm(weight, bias, mean, variance, 1e-3), (shape,),
                lambda x: F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-3))


W, B, V = rand(3, 4), rand(3), rand(4)
FACTOR, SHIFT, DIVISOR = rand(2, 1, 1), rand(3, 1), rand(4)
STACK, SIDE = rand(2, 4, 5), rand(6, 3)

CASES = [
    Case("linear", Linear(W, B), ((4,),), lambda x: x @ W.T + B),
    Case("linear without bias", Linear(W), ((4,),), lambda x: x @ W.T),
    Case("linear on the last of three axes", Linear(W, B), ((2, 3, 4),), lambda x: x @ W.T + B),
    conv_case("2d", rand(4, 3, 3, 3), rand(4), (3, 6, 5)),
    conv_case("2d stride, far edge dropped", rand(4, 3, 3, 3), None, (3, 8, 6), stride=(2, 3)),
    conv_case("2d stride beyond the kernel", rand(2, 1, 1, 1), rand(2), (1, 8, 8), stride=(3, 3)),
    conv_case("2d padding, dilation", rand(2, 3, 3, 2), rand(2), (3, 7, 7), padding=(2, 1), dilation=(2, 3)),
    conv_case("2d groups", rand(6, 2, 3, 3), rand(6), (4, 6, 6), padding=(1, 1), groups=2),
    conv_case("2d depthwise", rand(3, 1, 3, 3), None, (3, 5, 5), groups=3, stride=(2, 2), padding=(1, 1)),
    conv_case("2d strides that divide the kernel, other padding each axis", rand(2, 3, 4, 2), rand(2), (3, 7, 6),
              stride=(2, 2), padding=(2, 1)),
    conv_case("2d pointwise, stride, padding on one axis", rand(4, 3, 1, 1), rand(4), (3, 6, 5), stride=(2, 3),
              padding=(0, 1)),
    conv_case("1d", rand(3, 2, 4), rand(3), (2, 9), stride=(2,), padding=(1,)),
    conv_case("3d", rand(2, 2, 2, 2, 2), rand(2), (2, 4, 3, 4), stride=(2, 1, 2)),
    conv_transpose_case("2d", rand(3, 2, 3, 3), rand(2), (3, 3, 4)),
    conv_transpose_case("2d stride", rand(3, 2, 4, 4), None, (3, 3, 4), stride=2),
    conv_transpose_case("2d padding", rand(3, 2, 3, 3), rand(2), (3, 4, 4), stride=3, padding=2, output_padding=2),
    conv_transpose_case("2d groups, dilation", rand(4, 3, 3, 3), rand(6), (4, 4, 4), dilation=2, groups=2, padding=1),
    conv_transpose_case("1d output padding beyond the stride", rand(2, 3, 2), rand(3), (2, 5), output_padding=2,
                        dilation=3),
    conv_transpose_case("3d", rand(2, 1, 2, 2, 2), rand(1), (2, 2, 3, 2), stride=2),
    avg_pool_case("2d", (2, 2), (2, 2), (0, 0), (3, 4, 6)),
    avg_pool_case("2d overlapping, far edge dropped", (3, 2), (2, 1), (0, 0), (2, 6, 5)),
    avg_pool_case("2d padding", (3, 3), (2, 2), (1, 1), (2, 5, 6)),
    avg_pool_case("2d padding counted", (3, 3), (2, 2), (1, 1), (2, 5, 6), count_padding=True),
    avg_pool_case("2d ceil", (2, 3), (2, 2), (1, 0), (2, 5, 6), ceil=True),
    avg_pool_case("2d ceil, padding counted", (3, 3), (2, 2), (1, 1), (2, 6, 5), ceil=True, count_padding=True),
    avg_pool_case("1d", (3,), (2,), (1,), (2, 7)),
    avg_pool_case("3d", (2, 2, 2), (2, 1, 2), (0, 0, 0), (1, 4, 3, 4)),
    batch_norm_case("2d", (3, 4, 2), affine=True),
    batch_norm_case("1d", (5,), affine=True),
    batch_norm_case("without weights", (3, 4), affine=False),
    Case("add", Add(), ((2, 3), (2, 3)), lambda x, y: x + y),
    Case("subtract", Add(-1), ((2, 3), (2, 3)), lambda x, y: x - y),
    Case("add with broadcasting", Add(), ((2, 1, 4), (3, 1)), lambda x, y: x + y.unsqueeze(1)),
    Case("subtract with broadcasting", Add(-1), ((3,), (2, 1, 3)), lambda x, y: x[:, None, None] - y),
    Case("scale", Scale(FACTOR, SHIFT), ((2, 3, 4),), lambda x: x * FACTOR + SHIFT),
    Case("scale without shift", Scale(V), ((3, 4),), lambda x: x * V),
    Case("shift by a number", Scale(None, torch.tensor(0.5, dtype=torch.float64)), ((3, 4),), lambda x: x + 0.5),
    Case("divide", Divide(DIVISOR), ((3, 4),), lambda x: x / DIVISOR),
    Case("matmul", MatMul(W.T), ((4,),), lambda x: x @ W.T),
    Case("matmul on the left", MatMul(SIDE, left=True), ((3, 2),), lambda x: SIDE @ x),
    Case("matmul with a stack", MatMul(STACK), ((3, 4),), lambda x: x[:, None] @ STACK),
    Case("matmul stack with stack", MatMul(STACK.transpose(-1, -2), left=True), ((2, 4, 3),),
         lambda x: STACK.transpose(-1, -2) @ x),
    Case("reshape", Reshape((4, 3)), ((2, 6),), lambda x: x.reshape(-1, 4, 3)),
    Case("transpose", Transpose((2, 0, 1)), ((2, 3, 4),), lambda x: x.permute(0, 3, 1, 2)),
    Case("expand", Expand((2, 3, 4)), ((3, 1),), lambda x: x[:, None].expand(-1, 2, 3, 4)),
    Case("concat", Concat(1), ((2, 3), (2, 1), (2, 2)), lambda x, y, z: torch.cat([x, y, z], 2)),
    Case("slice", Slice(1, 1, 6, 2), ((2, 7),), lambda x: x[:, :, 1:6:2]),
    Case("gather with repeats", Gather(0, torch.tensor([2, 0, 2])), ((3, 2),), lambda x: x[:, [2, 0, 2]]),
    Case("sum", Reduce((0, 2)), ((2, 3, 4),), lambda x: x.sum((1, 3))),
    Case("mean, axes kept", Reduce((1,), keep=True, mean=True), ((2, 3),), lambda x: x.mean(2, keepdim=True)),
    Case("pad", Pad(((0, 0), (1, 2), (0, 1))), ((2, 3, 2),), lambda x: F.pad(x, (0, 1, 1, 2))),
    Case("pad with a value, crop", Pad(((1, -1), (-1, 2)), 1.5), ((3, 4),),
         lambda x: F.pad(x, (-1, 2, 1, -1), value=1.5)),
]


def affine(function: Callable[[Case], None]) -> Callable[..., None]:
    return pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)(function)


def inputs_of(case: Case, batch: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in case.shapes)


def jacobians(case: Case) -> list[Tensor]:
    """The matrix "out in" of each input, by autograd through `forward`."""
    single = tuple(x[0] for x in inputs_of(case))
    result = torch.autograd.functional.jacobian(lambda *xs: case.op.forward(*(x[None] for x in xs))[0], single)
    out = math.prod(case.op.forward(*inputs_of(case)).shape[1:])
    return [j.reshape(out, -1) for j in result]


@affine
def test_forward_equals_reference(case: Case) -> None:
    xs = inputs_of(case)
    torch.testing.assert_close(case.op.forward(*xs), case.reference(*xs), atol=ATOL, rtol=0)


@affine
def test_linear_is_forward_without_its_value_at_zero(case: Case) -> None:
    xs = inputs_of(case)
    at_zero = case.op.forward(*(torch.zeros_like(x) for x in xs))
    torch.testing.assert_close(case.op.linear(*xs), case.op.forward(*xs) - at_zero, atol=ATOL, rtol=0)


@affine
def test_pull_back_equals_vector_jacobian_product(case: Case) -> None:
    xs = tuple(x.requires_grad_() for x in inputs_of(case))
    y = case.op.linear(*xs)
    A = rand(*y.shape)
    expected = torch.autograd.grad(y, xs, A, materialize_grads=True)
    pulled = case.op.pull_back(A, case.shapes)
    assert len(pulled) == len(xs)
    for got, want in zip(pulled, expected, strict=True):
        torch.testing.assert_close(got.reshape(want.shape), want, atol=ATOL, rtol=0)
        assert got.shape == want.shape


@affine
def test_constant_is_the_row_at_zero(case: Case) -> None:
    at_zero = case.op.forward(*(torch.zeros_like(x) for x in inputs_of(case)))
    A = rand(5, *at_zero.shape[1:])
    expected = (A * at_zero[:1]).flatten(1).sum(1)
    got = case.op.constant(A)
    torch.testing.assert_close(torch.zeros_like(expected) if got is None else got, expected, atol=ATOL, rtol=0)


@affine
def test_magnitude_is_the_absolute_jacobian(case: Case) -> None:
    radii = tuple(x.abs() for x in inputs_of(case))
    got = case.op.magnitude(*radii).flatten(1)
    expected = sum(r.flatten(1) @ j.abs().T for r, j in zip(radii, jacobians(case), strict=True))
    torch.testing.assert_close(got, expected, atol=ATOL, rtol=0)


@affine
def test_the_absolute_operator_pulls_back_the_absolute_jacobian(case: Case) -> None:
    op = case.op.absolute()
    radii = tuple(x.abs() for x in inputs_of(case))
    torch.testing.assert_close(op.linear(*radii), case.op.magnitude(*radii), atol=ATOL, rtol=0)
    A = rand(4, *case.op.forward(*inputs_of(case)).shape[1:]).abs()
    for got, j in zip(op.pull_back(A, case.shapes), jacobians(case), strict=True):
        torch.testing.assert_close(got.flatten(1), A.flatten(1) @ j.abs(), atol=ATOL, rtol=0)


@affine
def test_interval_is_the_exact_range(case: Case) -> None:
    """Each output reaches its bound at a corner of the input box, and no sample leaves it."""
    centres = inputs_of(case)
    boxes = [Interval(c - r, c + r) for c, r in ((c, c.abs() / 2 + 0.1) for c in centres)]
    got = case.op.interval(*boxes)
    at_zero = case.op.forward(*(torch.zeros_like(c) for c in centres)).flatten(1)
    upper, lower = at_zero, at_zero
    for box, j in zip(boxes, jacobians(case), strict=True):
        low, high = box.lower.flatten(1), box.upper.flatten(1)
        upper = upper + high @ j.clamp(min=0).T + low @ j.clamp(max=0).T
        lower = lower + low @ j.clamp(min=0).T + high @ j.clamp(max=0).T
    torch.testing.assert_close(got.lower.flatten(1), lower, atol=ATOL, rtol=0)
    torch.testing.assert_close(got.upper.flatten(1), upper, atol=ATOL, rtol=0)
    for _ in range(20):
        xs = [box.lower + torch.rand(box.lower.shape, generator=_generator, dtype=torch.float64)
              * (box.upper - box.lower) for box in boxes]
        y = case.op.forward(*xs)
        assert bool(((y >= got.lower - ATOL) & (y <= got.upper + ATOL)).all())


@affine
def test_batch_equals_one_by_one(case: Case) -> None:
    xs = inputs_of(case)
    A = rand(3, *case.op.forward(*xs).shape[1:])
    together = case.op.forward(*xs), *case.op.pull_back(A, case.shapes)
    for i in range(3):
        alone = case.op.forward(*(x[i:i + 1] for x in xs)), *case.op.pull_back(A[i:i + 1], case.shapes)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i:i + 1], b, atol=ATOL, rtol=0)


@affine
def test_conversion_keeps_indices_and_changes_floats(case: Case) -> None:
    op = case.op.to(dtype=torch.float32)
    xs = tuple(x.float() for x in inputs_of(case))
    assert op.forward(*xs).dtype == torch.float32
    torch.testing.assert_close(op.forward(*xs).double(), case.op.forward(*inputs_of(case)), atol=1e-4, rtol=1e-4)


def test_batch_norm_in_training_uses_its_batch_and_refuses_bounds() -> None:
    op = BatchNorm(rand(3), rand(3), rand(3), rand(3).abs() + 0.1, 1e-5, training=True)
    x = rand(8, 3, 4, 4)
    expected = F.batch_norm(x, None, None, op.weight, op.bias, True)
    torch.testing.assert_close(op.forward(x), expected, atol=ATOL, rtol=0)
    fixed = op.with_batch_statistics(x)
    torch.testing.assert_close(fixed.forward(x), expected, atol=ATOL, rtol=0)
    torch.testing.assert_close(fixed.interval(Interval(x, x)).lower, expected, atol=ATOL, rtol=0)
    with pytest.raises(ValueError, match="with_batch_statistics"):
        op.interval(Interval(x, x))
    with pytest.raises(ValueError, match="with_batch_statistics"):
        op.pull_back(x, ((3, 4, 4),))


def test_batch_norm_reads_the_running_statistics_it_shares() -> None:
    mean = torch.zeros(2, dtype=torch.float64)
    op = BatchNorm(None, None, mean, torch.ones(2, dtype=torch.float64), 0.0)
    mean += 3
    assert op.forward(torch.zeros(1, 2, dtype=torch.float64)).tolist() == [[-3, -3]]


def test_conv_pulls_back_as_a_convolution_without_dense_matrix() -> None:
    """A dense matrix of this layer would hold 10^10 entries."""
    op = Conv(torch.ones(8, 3, 3, 3), None, (1, 1), (1, 1))
    (pulled,) = op.pull_back(torch.ones(1, 8, 112, 112), ((3, 112, 112),))
    assert pulled.shape == (1, 3, 112, 112)
    assert pulled[0, 0, 50, 50] == 72


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (2, 2), (3, 2), (3, 1)])
def test_no_rows_pass_through_a_convolution(kernel: int, stride: int) -> None:
    """All groups of a block may have been closed before its last pass."""
    op = conv_of(torch.randn(5, 3, kernel, kernel), torch.randn(5), stride=(stride, stride))
    shape = (3, 6, 6)
    out = op.forward(torch.zeros(1, *shape)).shape[1:]
    (pulled,) = op.pull_back(torch.zeros(0, *out), (shape,))
    assert tuple(pulled.shape) == (0, *shape)
