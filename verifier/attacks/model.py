"""What is attacked: a function from inputs "N *shape" to outputs "N m", with or without gradients.

`as_model` makes one of a `Graph`, an `nn.Module`, an ONNX file that onnxruntime evaluates, or any Python callable. A
callable gets a NumPy array "N *shape" and returns scores "N m", or integer labels "N": then only attacks that need
nothing but decisions apply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bounds.graph import Graph
from verifier.witness import OnnxReplayer, ReplayError


class Gives(IntEnum):
    """What a model tells about a point, and what an attack needs to know: each includes those before it."""

    LABELS = 0
    SCORES = 1
    GRADIENTS = 2


class ModelError(RuntimeError):
    """The model under attack failed, or returned what cannot be used."""


class Model(ABC):
    """A function under attack. shape: of one input. dtype, device: of the points it takes."""

    shape: tuple[int, ...] | None
    gives: Gives = Gives.GRADIENTS
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    entries: int = 1 << 16  # activations of one point, roughly: from this batches are sized
    note: str | None = None  # what is attacked instead of what was given

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """x "N *shape" -> scores "N m"; labels come as one-hot rows."""


class GraphModel(Model):
    """A network as the engine reads it. A softmax at the end is left out: it changes no order and hides gradients."""

    def __init__(self, graph: Graph) -> None:
        last = graph.nodes[graph.output]
        if last.op.kind.lower() in ("softmax", "logsoftmax"):
            import dataclasses

            output = last.inputs[0]
            graph = dataclasses.replace(graph, nodes=graph.nodes[: output + 1], output=output)
            self.note = f"the {last.op.kind} at the end is left out: logits are attacked, their order is the same"
        self.graph = graph
        self.shape = graph.input_shape
        self.dtype, self.device = graph.dtype, graph.device
        self.entries = sum(int(np.prod(node.shape)) for node in graph.nodes)

    def __call__(self, x: Tensor) -> Tensor:
        return self.graph(x).flatten(1)


class ModuleModel(Model):
    """An `nn.Module` in the mode it is in: its caller decides about `eval()`."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...] | None = None) -> None:
        self.module, self.shape = module, shape
        first = next(iter([*module.parameters(), *module.buffers()]), None)
        if first is not None:
            self.dtype = first.dtype if first.is_floating_point() else torch.float32
            self.device = first.device
        self.entries = 4 * sum(p.numel() for p in module.parameters()) if shape is None else 1 << 16

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x)
        return y.flatten(1)


@dataclass(eq=False)
class CallableModel(Model):
    """A plain Python function of NumPy arrays: no gradients."""

    function: Callable[[NDArray[Any]], Any]
    shape: tuple[int, ...] | None = None
    gives: Gives = Gives.SCORES
    classes: int | None = None  # needed for labels only: how many there are
    name: str = "the model"

    def __call__(self, x: Tensor) -> Tensor:
        points = x.detach().cpu().numpy()
        try:
            answer = np.asarray(self.function(points))
        except Exception as error:  # whatever a user's function raises
            raise ModelError(f"{self.name} raised {type(error).__name__}: {error}") from error
        if answer.shape[:1] != points.shape[:1] or answer.dtype.kind not in "fiub":
            raise ModelError(f"{self.name}: expected {points.shape[0]} rows of scores or {points.shape[0]} labels, got "
                             f"{answer.dtype} of shape {answer.shape}")
        if answer.ndim == 1 and answer.dtype.kind in "iub":
            return self._one_hot(answer)
        if self.gives is Gives.LABELS:
            raise ModelError(f"{self.name}: expected integer labels, got {answer.dtype} of shape {answer.shape}")
        return torch.from_numpy(answer.reshape(points.shape[0], -1)).to(x)

    def _one_hot(self, labels: NDArray[Any]) -> Tensor:
        self.gives = Gives.LABELS
        most = int(labels.max(initial=0))
        if labels.size and (int(labels.min()) < 0 or (self.classes is not None and most >= self.classes)):
            raise ModelError(f"{self.name}: labels must lie in 0 to {(self.classes or most + 1) - 1}, got "
                             f"{int(labels.min())} to {most}")
        if self.classes is None:
            raise ModelError(f"{self.name} returns labels: say how many classes there are (classes=...)")
        return torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), self.classes).to(self.dtype)


class OnnxModel(CallableModel):
    """An ONNX file as onnxruntime evaluates it, point by point where its batch axis is fixed."""

    def __init__(self, replayer: OnnxReplayer, shape: tuple[int, ...]) -> None:
        def evaluate(x: NDArray[Any]) -> NDArray[Any]:
            try:
                return replayer.run(x)
            except ReplayError as error:
                raise ModelError(str(error)) from error

        super().__init__(evaluate, shape, Gives.SCORES, name=replayer.name)


def as_model(source: Any, *, shape: tuple[int, ...] | None = None, classes: int | None = None) -> Model:
    """A `Model` of a Graph, an nn.Module, an OnnxReplayer (needs `shape`), or a callable (labels need `classes`)."""
    if isinstance(source, Model):
        return source
    if isinstance(source, Graph):
        return GraphModel(source)
    if isinstance(source, nn.Module):
        return ModuleModel(source, shape)
    if isinstance(source, OnnxReplayer):
        if shape is None:
            raise ValueError("an ONNX file through onnxruntime needs the shape of one input")
        return OnnxModel(source, shape)
    if callable(source):
        return CallableModel(source, shape, classes=classes)
    raise TypeError(f"expected a Graph, a Module, an OnnxReplayer or a callable, got {type(source).__name__}")
