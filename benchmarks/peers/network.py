"""A sequential ONNX file as a plain PyTorch module, and a wrapper that counts what an attack asks of it.

The peers' attacks need a module whose gradients PyTorch takes. Of rmax nothing is imported here: what measures the
peers must not depend on what it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

AGREEMENT = 1e-5  # relative to the largest logit: float32 sums in another order


class NotSequential(ValueError):
    """The file is no chain of the layers that are read here."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def refuse(node: onnx.NodeProto, wanted: str) -> NotSequential:
    return NotSequential(f"{node.op_type} ({node.name or node.output[0]}): {wanted}")


def convolution(node: onnx.NodeProto, weight: Tensor, bias: Tensor | None) -> nn.Module:
    given = attributes(node)
    if weight.ndim != 4 or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise refuse(node, "two-dimensional with stated pads")
    top, left, bottom, right = given.get("pads", [0] * 4)
    if (top, left) != (bottom, right):
        raise refuse(node, "the same pads on both sides")
    group = given.get("group", 1)
    layer = nn.Conv2d(weight.shape[1] * group, weight.shape[0], tuple(weight.shape[2:]), given.get("strides", (1, 1)),
                      (top, left), given.get("dilations", (1, 1)), group, bias is not None)
    return filled(layer, weight, bias)


def dense(node: onnx.NodeProto, weight: Tensor, bias: Tensor | None) -> nn.Module:
    given = attributes(node)
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or weight.ndim != 2:
        raise refuse(node, "x @ W + b")
    rows = weight if given.get("transB", 0) else weight.T
    return filled(nn.Linear(rows.shape[1], rows.shape[0], bias is not None), rows, bias)


def filled(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.reshape(-1).contiguous(), requires_grad=False)
    return layer


def flatten(node: onnx.NodeProto, shape: Tensor | None = None, _: Tensor | None = None) -> nn.Module:
    if attributes(node).get("axis", 1) != 1 or (shape is not None and (shape.ndim != 1 or len(shape) != 2)):
        raise refuse(node, "one row of features an image")
    return nn.Flatten()


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "Conv": convolution, "Gemm": dense, "MatMul": dense, "Flatten": flatten, "Reshape": flatten,
    "Relu": lambda node, *_: nn.ReLU(),
}


def sequential(path: Path) -> nn.Sequential:
    """The file's module, weights constant. Refuses by name whatever is no chain of `LAYERS` (and `Add` of a bias)."""
    graph = onnx.load(path).graph
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    inputs = [i.name for i in graph.input if i.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise NotSequential(f"one input and one output expected, got {inputs} and {len(graph.output)} outputs")
    current, layers = inputs[0], []
    for node in graph.node:
        if node.op_type == "Constant":
            stored[node.output[0]] = torch.from_numpy(numpy_helper.to_array(attributes(node)["value"]).copy())
            continue
        chained = [name for name in node.input if name and name not in stored]
        constants = [stored[name] for name in node.input if name in stored]
        if chained != [current] or len(constants) > 2:
            raise refuse(node, f"its input must be {current}, the result before it")
        if node.op_type == "Add" and layers and isinstance(layers[-1], nn.Linear) and layers[-1].bias is None:
            layers[-1].bias = nn.Parameter(constants[0].reshape(-1), requires_grad=False)
        elif node.op_type not in LAYERS or (node.op_type != "Add" and node.input[0] != current):
            raise refuse(node, f"only {', '.join(LAYERS)} and Add behind MatMul are read")
        else:
            layers.append(LAYERS[node.op_type](node, *constants, *[None] * (2 - len(constants))))
        current = node.output[0]
    if current != graph.output[0].name:
        raise NotSequential(f"the output {graph.output[0].name} is not the end of the chain")
    return nn.Sequential(*layers).eval()


def check(net: nn.Module, path: Path, x: Tensor, logits: np.ndarray | None) -> float:
    """Largest difference to the logits stored with the data (of another runtime) and to ONNX's reference, in logits.

    Raises where either is more than rounding.
    """
    from onnx.reference import ReferenceEvaluator
    with torch.no_grad():
        here = net(x).numpy()
    few = slice(0, 2)  # the reference takes its time
    name = onnx.load(path).graph.input[0].name
    (reference,) = ReferenceEvaluator(str(path)).run(None, {name: x[few].numpy()})
    pairs = [(here[few], reference)] + ([] if logits is None else [(here, logits)])
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    if not difference <= AGREEMENT * max(1.0, float(np.abs(here).max())):
        raise ValueError(f"{path}: the module's logits differ by {difference:.1e} from those expected")
    return difference


class Counted(nn.Module):
    """The network, with a count of the images that went through it and of the gradients that came back to its input.

    A Jacobian of ten logits counts as ten gradients. Images are counted over the whole batch: a library that goes on
    with images it has finished pays for them.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.reset()

    def reset(self) -> None:
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        x = x.float()  # the toolbox computes some candidates in float64
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.view_as(x)  # of this call alone: an attack may use its own tensor in other terms of a loss
            x.register_hook(self.count)
        return self.net(x)

    def count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
