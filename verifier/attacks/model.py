"""What is attacked: a function from inputs "N *shape" to outputs "N m", with or without gradients.

`as_model` makes one of a `Graph`, an `nn.Module`, an ONNX file that onnxruntime evaluates, or any Python callable,
which gets a NumPy array "N *shape" and returns scores "N m", or integer labels "N" or "N 1": then only attacks that
need nothing but decisions apply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bounds.graph import Graph
from verifier.logits import logits_of
from verifier.witness import OnnxReplayer, ReplayError

AGREEMENT = 1e-4  # of the largest output: float32 sums in another order


class Gives(IntEnum):
    """What a model tells about a point, and what an attack needs to know: each includes those before it."""

    LABELS = 0
    SCORES = 1
    GRADIENTS = 2


class ModelError(RuntimeError):
    """The model under attack failed, or returned what cannot be used."""


class Model(ABC):
    """A function under attack. shape: of one input."""

    shape: tuple[int, ...] | None
    gives: Gives = Gives.GRADIENTS
    dtype: torch.dtype | None = None    # None: that of the points it gets, as for the device
    device: torch.device | None = None
    entries: int = 1 << 16  # activations of one point, roughly: from this batches are sized
    note: str | None = None  # what is attacked instead of what was given

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """x "N *shape" -> scores "N m"; labels come as one-hot rows."""


class GraphModel(Model):
    """A network as the engine reads it. A softmax at the end is left out: it changes no order and hides gradients."""

    def __init__(self, graph: Graph) -> None:
        logits = logits_of(graph)
        if logits is not None:
            kind = graph.nodes[graph.output].op.kind
            graph, self.note = logits, f"the {kind} at the end is left out: logits, in the same order, are attacked"
        self.graph = graph
        self.shape = graph.input_shape
        self.dtype, self.device = graph.dtype, graph.device
        self.entries = sum(int(np.prod(node.shape)) for node in graph.nodes)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and x.device.type == "cpu":
            # Convolutions of a few hundred images and their gradients took a fifth less time so.
            x = x.to(memory_format=torch.channels_last)  # `contiguous` sees nothing to do for one channel
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
        y = self.module(x)
        if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
            got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ModelError(f"the module: expected a tensor with {x.shape[0]} rows of scores, got {got}")
        return y.reshape(x.shape[0], -1)


@dataclass(eq=False)
class CallableModel(Model):
    """A plain Python function of NumPy arrays: no gradients. Whether it gives scores or labels its first answer tells.

    classes: how many labels there are; or named: labels from this number on count as one, which is enough where only
    smaller ones matter (as those of a criterion). Labels need one of the two. The function gets a copy of the points.
    """

    function: Callable[[NDArray[Any]], Any]
    shape: tuple[int, ...] | None = None
    gives: Gives = Gives.SCORES
    classes: int | None = None
    named: int | None = None
    name: str = "the model"
    _answered: bool = field(default=False, init=False, repr=False)

    def __call__(self, x: Tensor) -> Tensor:
        points = x.detach().cpu().numpy()
        try:
            answer = np.asarray(self.function(points.copy()))
        except ModelError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise ModelError(f"{self.name} raised {type(error).__name__}: {error}") from error
        if answer.shape[:1] != points.shape[:1] or answer.dtype.kind not in "fiub":
            raise ModelError(f"{self.name}: expected {points.shape[0]} rows of scores or {points.shape[0]} labels, got "
                             f"{answer.dtype} of shape {answer.shape}")
        labels = answer.dtype.kind in "iub" and answer.shape in (points.shape[:1], (len(points), 1))
        gives = Gives.LABELS if labels else Gives.SCORES
        if gives is not self.gives and (self._answered or self.gives is Gives.LABELS):
            raise ModelError(f"{self.name}: expected {'integer ' * (self.gives is Gives.LABELS)}"
                             f"{self.gives.name.lower()}, got {answer.dtype} of shape {answer.shape}")
        self.gives, self._answered = gives, True
        if gives is Gives.LABELS:
            return self._one_hot(answer.reshape(-1).astype(np.int64)).to(x)
        return torch.from_numpy(answer.reshape(points.shape[0], -1)).to(x)

    def _one_hot(self, labels: NDArray[np.int64]) -> Tensor:
        if self.classes is None and self.named is None:
            raise ModelError(f"{self.name} returns labels: say how many classes there are, "
                             "as_model(function, classes=...)")
        least, most = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if least < 0 or (self.classes is not None and most >= self.classes):
            highest = f" to {self.classes - 1}" if self.classes is not None else ", 1, .."
            raise ModelError(f"{self.name}: labels must lie in 0{highest}, got {least} to {most}")
        columns = self.classes
        if columns is None:
            assert self.named is not None, "asked above"
            columns, labels = self.named + 1, labels.clip(max=self.named)
        return torch.nn.functional.one_hot(torch.from_numpy(labels), columns)


class OnnxModel(CallableModel):
    """An ONNX file as onnxruntime evaluates it: whole batches where its batch axis is free, else point by point.

    A file may declare a free axis and yet hold for one point only, or mix its rows: the first batch is compared with
    its first and last point run alone, and unless they agree to `AGREEMENT` all points are run alone.
    """

    def __init__(self, replayer: OnnxReplayer, shape: tuple[int, ...], *, classes: int | None = None,
                 named: int | None = None) -> None:
        self.replayer = replayer
        self._together: bool | None = None  # not known yet
        super().__init__(self._evaluate, shape, classes=classes, named=named, name=replayer.name)

    def _evaluate(self, x: NDArray[Any]) -> NDArray[Any]:
        try:
            if len(x) == 1 or self._together is False:
                return self.replayer.run(x)
            if self._together is None:
                self._together = self._agrees(x)
            return self.replayer.run_together(x) if self._together else self.replayer.run(x)
        except ReplayError as error:
            raise ModelError(str(error)) from error

    def _agrees(self, x: NDArray[Any]) -> bool:
        try:
            batch = self.replayer.run_together(x)
        except ReplayError:  # nothing is lost: every point can be run alone, and what fails there is told
            return False
        alone = self.replayer.run(x[[0, -1]])
        if batch.shape != (len(x), *alone.shape[1:]):
            return False
        size = max(1.0, float(np.abs(alone, where=np.isfinite(alone), out=np.zeros_like(alone)).max(initial=0)))
        return bool(np.allclose(batch[[0, -1]], alone, rtol=0, atol=AGREEMENT * size, equal_nan=True))


def as_model(source: Any, *, shape: tuple[int, ...] | None = None, classes: int | None = None,
             named: int | None = None) -> Model:
    """A `Model` of a Graph, an nn.Module, an OnnxReplayer (needs `shape`), or a callable. Where labels come back
    they need `classes` or `named`: see `CallableModel`."""
    if isinstance(source, Model):
        return source
    if isinstance(source, Graph):
        return GraphModel(source)
    if isinstance(source, nn.Module):
        return ModuleModel(source, shape)
    if isinstance(source, OnnxReplayer):
        if shape is None:
            raise ValueError("an ONNX file through onnxruntime needs the shape of one input")
        return OnnxModel(source, shape, classes=classes, named=named)
    if callable(source):
        return CallableModel(source, shape, classes=classes, named=named)
    raise TypeError(f"expected a Graph, a Module, an OnnxReplayer or a callable, got {type(source).__name__}")
