"""Changes of sizes and stored values: dimensions of inputs, shapes, types and numbers of weights."""

from __future__ import annotations

import copy
import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.mutants.pick import FLOATS, NUMBERS, SIZES, Unfit, any_weight, one_of, store

NAMES = ("", "x", "nowhere", "ä" * 50, "a/b\n c", "y" * 5000)


def input_dimension(model: onnx.ModelProto, draw: random.Random) -> None:
    info = one_of((*model.graph.input, *model.graph.output), draw)
    dim = one_of(info.type.tensor_type.shape.dim, draw)
    dim.dim_value = draw.choice(SIZES)


def dynamic_dimension(model: onnx.ModelProto, draw: random.Random) -> None:
    dim = one_of((d for i in model.graph.input for d in i.type.tensor_type.shape.dim), draw)
    dim.dim_param = draw.choice(("N", "", "batch_size"))


def input_rank(model: onnx.ModelProto, draw: random.Random) -> None:
    shape = one_of(model.graph.input, draw).type.tensor_type.shape
    if draw.random() < 0.5 and shape.dim:
        del shape.dim[draw.randrange(len(shape.dim))]
    else:
        at = draw.randrange(len(shape.dim) + 1)
        shape.dim.insert(at, onnx.TensorShapeProto.Dimension(dim_value=draw.choice((1, 2))))


def no_input_shape(model: onnx.ModelProto, draw: random.Random) -> None:
    info = one_of(model.graph.input, draw)
    info.type.tensor_type.ClearField("shape")


def input_type(model: onnx.ModelProto, draw: random.Random) -> None:
    info = one_of((*model.graph.input, *model.graph.output), draw)
    info.type.tensor_type.elem_type = draw.randrange(25)


def stored_dimension(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = any_weight(model, draw)
    if not weight.dims:
        raise Unfit
    weight.dims[draw.randrange(len(weight.dims))] = draw.choice(SIZES)


def stored_shape(model: onnx.ModelProto, draw: random.Random) -> None:
    """As many numbers, in another shape."""
    weight = any_weight(model, draw)
    dims = list(weight.dims)
    draw.shuffle(dims)
    choices = (dims, [*dims, 1], [1, *dims], [int(np.prod(dims))], dims[:-1])
    del weight.dims[:]
    weight.dims.extend(draw.choice(choices))


def weight_missing(model: onnx.ModelProto, draw: random.Random) -> None:
    if not model.graph.initializer:
        raise Unfit
    del model.graph.initializer[draw.randrange(len(model.graph.initializer))]


def weight_renamed(model: onnx.ModelProto, draw: random.Random) -> None:
    any_weight(model, draw).name = draw.choice((*NAMES, any_weight(model, draw).name))


def weight_doubled(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = copy.deepcopy(one_of(model.graph.initializer, draw))
    model.graph.initializer.append(weight)
    if draw.random() < 0.7:
        array = numpy_helper.to_array(model.graph.initializer[-1])
        store(model.graph.initializer[-1], array * array.dtype.type(2))


def weight_value(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = any_weight(model, draw)
    array = numpy_helper.to_array(weight).copy()
    if not array.size:
        raise Unfit
    integer = array.dtype.kind in "iu"
    array.reshape(-1)[draw.randrange(array.size)] = draw.choice(NUMBERS) if integer else draw.choice(FLOATS)
    store(weight, array)


def weight_scaled(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = any_weight(model, draw)
    array = numpy_helper.to_array(weight)
    if array.dtype.kind != "f":
        raise Unfit
    with np.errstate(all="ignore"):
        store(weight, (array * array.dtype.type(draw.choice((0.0, -1.0, 1e10, 1e30, 1e-30)))).astype(array.dtype))


def weight_type(model: onnx.ModelProto, draw: random.Random) -> None:
    """Another type stated for the same bytes, or the values converted to it."""
    weight = any_weight(model, draw)
    if draw.random() < 0.5:
        weight.data_type = draw.randrange(26)
        return
    with np.errstate(all="ignore"):
        array = numpy_helper.to_array(weight).astype(draw.choice((np.float64, np.float16, np.int64, np.int8, np.bool_)))
    store(weight, array)


def weight_cut(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = any_weight(model, draw)
    if weight.raw_data:
        weight.raw_data = draw.choice((b"", weight.raw_data[:-1], weight.raw_data[:-4], weight.raw_data + b"\0" * 4))
    elif weight.float_data:
        weight.float_data.pop()
    else:
        raise Unfit


def weight_empty(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = any_weight(model, draw)
    array = numpy_helper.to_array(weight)
    if not array.ndim:
        raise Unfit
    axis = draw.randrange(array.ndim)
    store(weight, array.take(range(0), axis=axis))


def weight_resized(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = any_weight(model, draw)
    array = numpy_helper.to_array(weight)
    if not array.ndim or not array.size:
        raise Unfit
    axis = draw.randrange(array.ndim)
    store(weight, np.concatenate([array, array.take([0], axis)], axis) if draw.random() < 0.5
           else array.take(range(array.shape[axis] - 1), axis))


def weight_external(model: onnx.ModelProto, draw: random.Random) -> None:
    weight = one_of(model.graph.initializer, draw)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", draw.choice(("weights.bin", "../../etc/passwd", "/dev/zero", "", "."))),
                       ("offset", draw.choice(("0", "-1", "one"))), ("length", draw.choice(("4", "1000000000000")))):
        if draw.random() < 0.8:
            weight.external_data.add(key=key, value=value)
    if draw.random() < 0.5:
        weight.ClearField("raw_data")


def weight_is_input(model: onnx.ModelProto, draw: random.Random) -> None:
    """As files of old versions have it: the stored tensor is also declared as an input."""
    weight = one_of(model.graph.initializer, draw)
    model.graph.input.append(helper.make_tensor_value_info(
        weight.name, weight.data_type, list(weight.dims)))


CHANGES = (
    input_dimension, dynamic_dimension, input_rank, no_input_shape, input_type, stored_dimension, stored_shape,
    weight_missing, weight_renamed, weight_doubled, weight_value, weight_scaled, weight_type, weight_cut,
    weight_empty, weight_resized, weight_external, weight_is_input)
