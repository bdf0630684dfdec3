"""Rows of layers: dense, convolutional, pooling, normalisation, activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bounds.graph.builder import Value
from bounds.graph.from_torch.table import Trace, activation, function, module, several
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator
from bounds.ops.base import Operator

# ---------------------------------------------------------------------- dense


@function(F.linear)
def linear(t: Trace, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    return t.builder.linear(activation(x, "the input"), weight, bias)


@module(nn.Linear)
def _linear(t: Trace, m: nn.Linear, x: Value) -> Value:
    return linear(t, x, m.weight, m.bias)


@function(torch.matmul, torch.mm, torch.bmm, methods=("matmul", "mm", "bmm", "__matmul__", "__rmatmul__"))
def matmul(t: Trace, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        raise UnsupportedOperator("a product of two activations has no bounds yet; one factor must be constant")
    if isinstance(a, Value):
        return t.builder.matmul(a, t.constant(b))
    return t.builder.matmul(b, t.constant(a), left=True)


# ---------------------------------------------------------------------- convolutions


def _same_padding(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return [n // 2 for n in totals], [n - n // 2 for n in totals]


@function(F.conv1d, F.conv2d, F.conv3d)
def conv(t: Trace, input: Value, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
         dilation: Any = 1, groups: int = 1) -> Value:
    axes = weight.dim() - 2
    x = _with_batch(t, activation(input, "the input"), weight.dim())
    stride, dilation = several(stride, axes), several(dilation, axes)
    if padding == "same":
        before, after = _same_padding(weight.shape[2:], dilation)
    else:
        both = list(several(0 if padding == "valid" else padding, axes))
        before, after = both, both
    return t.builder.conv(x, weight, bias, stride=stride, before=before, after=after, dilation=dilation, groups=groups)


def _with_batch(t: Trace, x: Value, rank: int) -> Value:
    """A map without batch axis is taken as a batch of one, as PyTorch does."""
    return t.builder.reshape(x, (1, *x.shape)) if len(x.shape) == rank - 1 else x


_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@module(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(t: Trace, m: nn.Conv2d, x: Value) -> Value:
    if m.padding_mode == "zeros":
        return conv(t, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    axes = m.weight.dim() - 2
    if m.padding == "same":
        before, after = _same_padding(m.kernel_size, m.dilation)
    else:
        before = after = list(several(0 if m.padding == "valid" else m.padding, axes))  # type: ignore[arg-type]
    pads = [(0, 0)] * (len(x.shape) - axes) + list(zip(before, after, strict=True))
    padded = t.builder.pad(x, pads, 0.0, _PAD_MODES[m.padding_mode])
    return conv(t, padded, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


@function(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def conv_transpose(t: Trace, input: Value, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
                   padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Value:
    axes = weight.dim() - 2
    x = _with_batch(t, activation(input, "the input"), weight.dim())
    pads = several(padding, axes)
    return t.builder.conv_transpose(x, weight, bias, stride=several(stride, axes), before=pads, after=pads,
                                    output_padding=several(output_padding, axes), dilation=several(dilation, axes),
                                    groups=groups)


@module(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose(t: Trace, m: nn.ConvTranspose2d, x: Value, output_size: Any = None) -> Value:
    if output_size is not None:
        raise UnsupportedOperator("output_size is not supported; use output_padding")
    return conv_transpose(t, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)


# ---------------------------------------------------------------------- normalisation


@function(F.batch_norm)
def batch_norm(t: Trace, input: Value, running_mean: Tensor | None, running_var: Tensor | None,
               weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
               momentum: float = 0.1, eps: float = 1e-5) -> Value:
    if training or running_mean is None or running_var is None:
        raise UnsupportedOperator("batch normalisation without running statistics is not a function of one input")
    return t.builder.batch_norm(input, weight, bias, running_mean, running_var, eps)


@module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(t: Trace, m: nn.BatchNorm2d, x: Value) -> Value:
    return batch_norm(t, x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.1, m.eps)


# ---------------------------------------------------------------------- pooling


@function(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def avg_pool(t: Trace, input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
             count_include_pad: bool = True, divisor_override: int | None = None) -> Value:
    axes = _pool_axes(input, kernel_size)
    kernel = several(kernel_size, axes)
    if divisor_override is not None:
        raise UnsupportedOperator("divisor_override is not supported; scale the result instead")
    pads = several(padding, axes)
    return t.builder.avg_pool(_with_batch(t, input, axes + 2), kernel=kernel,
                              stride=several(kernel if _absent(stride) else stride, axes),
                              before=pads, after=pads, ceil=ceil_mode, count_padding=count_include_pad)


def _absent(stride: Any) -> bool:
    return stride is None or (isinstance(stride, (tuple, list)) and not stride)


def _pool_axes(x: Value, kernel: Any) -> int:
    return len(kernel) if isinstance(kernel, (tuple, list)) and len(kernel) > 1 else len(x.shape) - 2


@module(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _avg_pool(t: Trace, m: nn.AvgPool2d, x: Value) -> Value:
    return avg_pool(t, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad,
                    getattr(m, "divisor_override", None))


@function(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def max_pool(t: Trace, input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False, return_indices: bool = False) -> Value:
    if return_indices:
        raise UnsupportedOperator("return_indices is not supported")
    axes = _pool_axes(input, kernel_size)
    kernel, pads = several(kernel_size, axes), several(padding, axes)
    return t.builder.max_pool(_with_batch(t, input, axes + 2), kernel=kernel,
                              stride=several(kernel if _absent(stride) else stride, axes),
                              before=pads, after=pads, dilation=several(dilation, axes), ceil=ceil_mode)


@module(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def _max_pool(t: Trace, m: nn.MaxPool2d, x: Value) -> Value:
    return max_pool(t, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _adaptive(axes: int) -> Callable[..., Value]:
    def row(t: Trace, input: Value, output_size: Any) -> Value:
        sizes = input.shape[-axes:]
        wanted = [n if w is None else w for n, w in zip(sizes, several(output_size, axes), strict=True)]
        if any(n % w for n, w in zip(sizes, wanted, strict=True)):
            raise UnsupportedOperator(f"adaptive pooling of {sizes} to {tuple(wanted)}: windows of unequal size")
        kernel = tuple(n // w for n, w in zip(sizes, wanted, strict=True))
        return avg_pool(t, input, kernel, kernel)
    return row


_ADAPTIVE = {axes: _adaptive(axes) for axes in (1, 2, 3)}
function(F.adaptive_avg_pool1d)(_ADAPTIVE[1])
function(F.adaptive_avg_pool2d)(_ADAPTIVE[2])
function(F.adaptive_avg_pool3d)(_ADAPTIVE[3])


@module(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
def _adaptive_avg_pool(t: Trace, m: nn.AdaptiveAvgPool2d, x: Value) -> Value:
    return _ADAPTIVE[int(type(m).__name__[-2])](t, x, m.output_size)


# ---------------------------------------------------------------------- activations


def _apply(t: Trace, op: Operator, x: Value) -> Value:
    return t.builder.elementwise(op, activation(x, "the input"))


@function(F.relu, F.relu_, torch.relu, torch.relu_, methods=("relu",))
def relu(t: Trace, input: Value) -> Value:
    from bounds.ops.relu import Relu

    return _apply(t, Relu(), input)


@function(F.leaky_relu, F.leaky_relu_)
def leaky_relu(t: Trace, input: Value, negative_slope: float = 0.01) -> Value:
    from bounds.ops.leaky_relu import LeakyRelu

    return _apply(t, LeakyRelu(float(negative_slope)), input)


@function(F.prelu, torch.prelu)
def prelu(t: Trace, input: Value, weight: Tensor) -> Value:
    """One slope, or one for each channel (axis 1)."""
    from bounds.ops.prelu import PRelu

    if weight.numel() > 1:
        if len(input.shape) < 2 or input.shape[1] != weight.numel():
            raise InvalidNetwork(f"{weight.numel()} slopes do not fit a tensor of shape {input.shape}")
        weight = weight.reshape(-1, *(1,) * (len(input.shape) - 2)) if len(input.shape) > 2 else weight
    return _apply(t, PRelu(weight), input)


@function(F.elu, F.elu_)
def elu(t: Trace, input: Value, alpha: float = 1.0) -> Value:
    from bounds.ops.elu import Elu

    return _apply(t, Elu(float(alpha)), input)


@function(F.softplus)
def softplus(t: Trace, input: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    from bounds.ops.softplus import Softplus

    return _apply(t, Softplus(float(beta), float(threshold)), input)


@function(F.hardtanh, F.hardtanh_)
def hardtanh(t: Trace, input: Value, min_val: float = -1.0, max_val: float = 1.0) -> Value:
    return clamp(t, input, min_val, max_val)


@function(F.relu6)
def relu6(t: Trace, input: Value) -> Value:
    return clamp(t, input, 0.0, 6.0)


@function(torch.clamp, torch.clip, methods=("clamp", "clip"))
def clamp(t: Trace, input: Value, min: Any = None, max: Any = None) -> Value:
    from bounds.ops.clip import Clip
    from bounds.ops.relu import Relu

    if any(isinstance(limit, Tensor) and limit.numel() != 1 for limit in (min, max)):
        raise UnsupportedOperator("limits that differ between entries are not supported")
    if isinstance(min, Value) or isinstance(max, Value):
        raise UnsupportedOperator("limits that depend on the input are not supported")
    low = -math.inf if min is None else float(min)
    high = math.inf if max is None else float(max)
    if not low <= high:
        raise InvalidNetwork(f"clamping needs min <= max, got {low} and {high}")
    return _apply(t, Relu() if (low, high) == (0.0, math.inf) else Clip(low, high), input)


@function(torch.sign, methods=("sign",))
def sign(t: Trace, input: Value) -> Value:
    from bounds.ops.sign import Sign

    return _apply(t, Sign(), input)


@function(torch.sigmoid, F.sigmoid, methods=("sigmoid",))
def sigmoid(t: Trace, input: Value) -> Value:
    from bounds.ops.sigmoid import Sigmoid

    return _apply(t, Sigmoid(), input)


@function(torch.tanh, F.tanh, methods=("tanh",))
def tanh(t: Trace, input: Value) -> Value:
    from bounds.ops.tanh import Tanh

    return _apply(t, Tanh(), input)


@function(F.softmax, torch.softmax, methods=("softmax",))
def softmax(t: Trace, input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Value:
    if dim is None:
        raise UnsupportedOperator("softmax without dim is ambiguous; name the axis")
    return t.builder.softmax(activation(input, "the input"), dim)


_ACTIVATIONS: dict[type[nn.Module], Callable[[Trace, Any, Value], Value]] = {
    nn.ReLU: lambda t, m, x: relu(t, x),
    nn.LeakyReLU: lambda t, m, x: leaky_relu(t, x, m.negative_slope),
    nn.PReLU: lambda t, m, x: prelu(t, x, m.weight),
    nn.ELU: lambda t, m, x: elu(t, x, m.alpha),
    nn.Softplus: lambda t, m, x: softplus(t, x, m.beta, m.threshold),
    nn.Hardtanh: lambda t, m, x: hardtanh(t, x, m.min_val, m.max_val),
    nn.ReLU6: lambda t, m, x: relu6(t, x),
    nn.Sigmoid: lambda t, m, x: sigmoid(t, x),
    nn.Tanh: lambda t, m, x: tanh(t, x),
    nn.Softmax: lambda t, m, x: softmax(t, x, m.dim),
}
for _type, _row in _ACTIVATIONS.items():
    module(_type)(_row)


@function(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout, aliases=True)
def dropout(t: Trace, input: Value, p: float = 0.5, training: bool = True) -> Value:
    if training:
        raise UnsupportedOperator("dropout with training=True drops values at random; pass training=self.training")
    return input


@module(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity,
        aliases=True)
def _identity(t: Trace, m: nn.Module, x: Value) -> Value:
    return x
