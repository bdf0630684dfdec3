"""Importer rows of operators over maps: convolutions, pooling, batch normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from bounds.graph.builder import Value
from bounds.graph.from_onnx.call import Call
from bounds.graph.from_onnx.table import row
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator


def _settings(c: Call, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """stride and dilation, by default one on every axis."""
    ones = [1] * len(kernel)
    stride, dilation = c.integers("strides") or ones, c.integers("dilations") or ones
    if not len(stride) == len(dilation) == len(kernel) or min(*stride, *dilation) < 1:
        raise InvalidNetwork(f"strides {stride} and dilations {dilation} do not fit a window {list(kernel)}")
    return list(stride), list(dilation)


def _pads(c: Call, x: Value, kernel: Sequence[int], stride: Sequence[int],
          dilation: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each axis, from `pads` or `auto_pad`."""
    axes = len(kernel)
    auto = c.text("auto_pad", "NOTSET")
    pads = c.integers("pads") or [0] * 2 * axes
    if auto == "NOTSET":
        if len(pads) != 2 * axes or min(pads) < 0:
            raise InvalidNetwork(f"expected {2 * axes} pads of at least 0, got {pads}")
        return list(pads[:axes]), list(pads[axes:])
    if auto == "VALID":
        return [0] * axes, [0] * axes
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedOperator(f"auto_pad {auto!r}")
    totals = [(-(-n // s) - 1) * s + k - n for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    if min(totals) < 0 or max(dilation) > 1:  # where runtimes refuse or disagree
        raise UnsupportedOperator(f"auto_pad {auto!r} with strides {list(stride)} beyond the window {list(kernel)} or "
                                  f"dilations {list(dilation)}: give the pads themselves")
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _kernel_of_weight(c: Call, shape: Sequence[int]) -> list[int]:
    kernel = list(shape[2:])
    if not kernel:
        raise InvalidNetwork(f"a convolution's weight needs three axes or more, got the shape {tuple(shape)}")
    if (stated := c.integers("kernel_shape")) not in (None, kernel):
        raise InvalidNetwork(f"kernel_shape {stated} differs from the weight's {kernel}")
    return kernel


@row("Conv")
def conv(c: Call) -> Value:
    x, weight = c.value(), c.tensor(1)
    kernel = _kernel_of_weight(c, weight.shape)
    stride, dilation = _settings(c, kernel)
    before, after = _pads(c, x, kernel, stride, dilation)
    return c.builder.conv(x, weight, c.optional(2), stride=stride, before=before, after=after, dilation=dilation,
                          groups=c.integer("group", 1))


@row("ConvTranspose")
def conv_transpose(c: Call) -> Value:
    x, weight = c.value(), c.tensor(1)
    kernel = _kernel_of_weight(c, weight.shape)
    stride, dilation = _settings(c, kernel)
    extra = c.integers("output_padding") or [0] * len(kernel)
    shape = c.integers("output_shape")
    if shape or c.text("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        # The padding is what brings the result to this size; the odd cell goes where auto_pad says.
        shape = shape or [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
        c.ignore("pads")
        totals = [(n - 1) * s + o + d * (k - 1) + 1 - size for n, s, o, d, k, size
                  in zip(x.shape[2:], stride, extra, dilation, kernel, shape[-len(kernel):], strict=True)]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        upper = c.text("auto_pad", "NOTSET") == "SAME_UPPER"
        before, after = (small, large) if upper else (large, small)
        if min(totals) < 0:
            raise UnsupportedOperator(f"output_shape {shape} is larger than the windows reach")
    else:
        before, after = _pads(c, x, kernel, stride, dilation)
    return c.builder.conv_transpose(x, weight, c.optional(2), stride=stride, before=before, after=after,
                                    output_padding=extra, dilation=dilation, groups=c.integer("group", 1))


@row("BatchNormalization")
def batch_normalization(c: Call) -> Value:
    c.ignore("momentum", "consumed_inputs")
    if c.integer("training_mode", 0):
        raise UnsupportedOperator("training_mode=1 normalises by the batch; export the network for inference")
    if not c.integer("spatial", 1):
        raise UnsupportedOperator("attribute 'spatial' = 0 is not supported")
    return c.builder.batch_norm(c.value(), c.tensor(1), c.tensor(2), c.tensor(3), c.tensor(4),
                                c.number("epsilon", 1e-5))


@row("AveragePool")
def average_pool(c: Call) -> Value:
    x = c.value()
    kernel = c.window()
    stride, dilation = _settings(c, kernel)
    if any(d != 1 for d in dilation):
        raise UnsupportedOperator(f"attribute 'dilations' = {dilation} is not supported")
    before, after = _pads(c, x, kernel, stride, dilation)
    return c.builder.avg_pool(x, kernel=kernel, stride=stride, before=before, after=after,
                              ceil=bool(c.integer("ceil_mode", 0)),
                              count_padding=bool(c.integer("count_include_pad", 0)))


@row("GlobalAveragePool")
def global_average_pool(c: Call) -> Value:
    x = c.value()
    return c.builder.reduce(x, range(2, len(x.shape)), keep=True, mean=True)


@row("MaxPool")
def max_pool(c: Call) -> Value:
    x = c.value()
    kernel = c.window()
    stride, dilation = _settings(c, kernel)
    before, after = _pads(c, x, kernel, stride, dilation)
    c.ignore("storage_order")  # orders the second output only, which no row offers
    return c.builder.max_pool(x, kernel=kernel, stride=stride, before=before, after=after, dilation=dilation,
                              ceil=bool(c.integer("ceil_mode", 0)))
