"""One ONNX node as the function that imports it sees it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from bounds.graph.builder import Builder, Value
from bounds.graph.graph import InvalidNetwork, UnsupportedOperator
from bounds.graph.limits import shown


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name; their values as the file states them."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that depends on no input; `name` is its ONNX tensor name."""

    name: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@dataclass(eq=False)
class Call:
    """An ONNX node with its inputs looked up. Attributes must be asked for: one that no row reads is refused, so an
    option that is not implemented cannot be overlooked."""

    builder: Builder
    op_type: str
    opset: int
    inputs: list[Value | Constant | None]
    outputs: list[str]
    attributes: dict[str, Any]
    dtype: torch.dtype
    _read: set[str] = field(default_factory=set)

    # ------------------------------------------------------------------ attributes

    def integer(self, name: str, default: int) -> int:
        return default if (value := self._stored(name, int)) is None else value

    def number(self, name: str, default: float) -> float:
        """A finite float32 number, and so is its default."""
        value = self.optional_number(name)
        if value is not None and not math.isfinite(value):
            raise InvalidNetwork(f"the attribute {name!r} is {value}, expected a finite number")
        return float(np.float32(default)) if value is None else value

    def optional_number(self, name: str) -> float | None:
        return None if (value := self._stored(name, int, float)) is None else float(value)

    def text(self, name: str, default: str) -> str:
        return default if (value := self._stored(name, bytes, str)) is None else value

    def integers(self, name: str) -> list[int] | None:
        return self._stored(name, list)

    def window(self) -> list[int]:
        """The attribute kernel_shape, which pooling must have."""
        kernel = self.integers("kernel_shape")
        if not kernel or min(kernel) < 1:
            raise InvalidNetwork(f"the attribute 'kernel_shape' must hold positive numbers, got {kernel}")
        return kernel

    def ignore(self, *names: str) -> None:
        """Attributes that do not change the values of an inference."""
        self._read.update(names)

    def _stored(self, name: str, *kinds: type) -> Any:
        self._read.add(name)
        value = self.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, kinds) or (isinstance(value, list) and not all(isinstance(v, int) for v in value)):
            raise InvalidNetwork(f"the attribute {name!r} has the wrong type: {type(value).__name__}")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def refuse_unread_attributes(self) -> None:
        unread = sorted(map(str, set(self.attributes) - self._read))
        if unread:
            raise UnsupportedOperator(f"attribute {unread[0]!r} is not supported")

    # ------------------------------------------------------------------ inputs

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def get(self, i: int) -> Value | Constant:
        found = self.inputs[i] if i < len(self.inputs) else None
        if found is None:
            raise InvalidNetwork(f"input {i} is missing")
        return found

    def value(self, i: int = 0) -> Value:
        """Input i, which must depend on the network's input."""
        found = self.get(i)
        if isinstance(found, Constant):
            raise UnsupportedOperator(f"input {i} is a constant, expected an activation")
        return found

    def array(self, i: int) -> np.ndarray:
        """Input i, which must be constant."""
        found = self.get(i)
        if isinstance(found, Value):
            raise UnsupportedOperator(f"input {i} depends on the network's input; only a constant is supported there")
        return found.array

    def ints(self, i: int, attribute: str | None = None) -> list[int] | None:
        """A list of integers that older operator sets store as an attribute and newer ones as input i."""
        if attribute is not None and (stored := self.integers(attribute)) is not None:
            return list(stored)
        if not self.has(i):
            return None
        array = self.array(i)
        if array.dtype.kind not in "iu":
            raise InvalidNetwork(f"input {i} holds {array.dtype} values, expected integers")
        return [int(n) for n in array.reshape(-1)]

    def scalar(self, i: int) -> float:
        """Input i, a constant of one number."""
        return scalar(self.array(i))

    def tensor(self, i: int) -> Tensor:
        """Input i as an operator's parameter: constant, floating-point and finite."""
        self.array(i)
        found = self.get(i)
        assert isinstance(found, Constant), "array() refuses activations"
        return as_parameter(found, self.dtype)

    def optional(self, i: int) -> Tensor | None:
        return self.tensor(i) if self.has(i) else None


def scalar(array: np.ndarray) -> float:
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise UnsupportedOperator(f"a constant of shape {array.shape} and type {array.dtype}: only one number is "
                                  "supported there")
    return float(array.reshape(()))


def as_parameter(constant: Constant, dtype: torch.dtype) -> Tensor:
    """The constant as a tensor of the network's dtype; NaN and infinities are refused by name."""
    array = constant.array
    if array.dtype not in (np.float32, np.float64):
        raise UnsupportedOperator(f"{constant.name} has type {array.dtype}, only float32 and float64 parameters are "
                                  "supported")
    with np.errstate(all="ignore"):  # a non-finite entry makes the sum non-finite; a finite sum clears all entries
        finite = bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())
    if not finite:
        where = np.unravel_index(int(np.argmin(np.isfinite(array))), array.shape)
        raise InvalidNetwork(f"the tensor {constant.name!r} has a value that is not finite: {array[where]} at "
                             f"{tuple(int(w) for w in where)}")
    with warnings.catch_warnings():
        # The buffer of a protobuf message is read-only, and nothing here writes to parameters.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape).to(dtype)


def to_array(tensor: onnx.TensorProto) -> np.ndarray:
    """A stored tensor's values; InvalidNetwork where its bytes do not fit its shape."""
    from onnx import numpy_helper

    if any(n < 0 for n in tensor.dims):
        raise InvalidNetwork(f"the tensor {shown(tensor.name)} has the shape {list(tensor.dims)}, expected sizes of at "
                             "least 0")
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidNetwork(f"the tensor {shown(tensor.name)} is damaged or cut off ({error})") from error
