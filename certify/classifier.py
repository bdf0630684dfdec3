"""A module under training, and the graphs through which its bounds are differentiated.

Batch normalisation in training: statistics are those of the clean minibatch, in the clean pass as well as in the
bounds, and gradients pass through them (as in CROWN-IBP, arXiv:1906.06316, and fast IBP, arXiv:2103.17268). Attacks see
the running statistics.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bounds.graph import Graph
from bounds.ops.batch_norm import BatchNorm

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Classifier:
    """A module that maps inputs "B *input_shape" to logits "B m", read once as a graph that shares its parameters.

    Raises UnsupportedOperator where a layer has no bounds. Parameters must stay the same tensors while this lives.
    """

    def __init__(self, module: nn.Module, input_shape: tuple[int, ...]) -> None:
        self.module = module
        self.input_shape = tuple(input_shape)
        training = module.training
        module.eval()
        self.graph = Graph.from_torch(module, self.input_shape)
        module.train(training)
        self._norms = [m for m in module.modules() if isinstance(m, NORMS)]

    @property
    def classes(self) -> int:
        return int(torch.Size(self.graph.output_shape).numel())

    @property
    def normalises_single_numbers(self) -> bool:
        """Whether some batch normalisation sees one number an example and channel: a single example has no statistics
        there."""
        return any(math.prod(self.graph.nodes[i].shape[1:]) == 1 for i in self._norm_of)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits in the mode in which the module is."""
        logits: Tensor = self.module(x)
        return logits

    @cached_property
    def _norm_of(self) -> dict[int, Any]:
        """The module of each node of batch normalisation."""
        by_buffer = {id(m.running_mean): m for m in self._norms}
        return {i: by_buffer[id(n.op.mean)] for i, n in enumerate(self.graph.nodes) if isinstance(n.op, BatchNorm)}

    def clean(self, x: Tensor) -> tuple[Tensor, Graph]:
        """(logits "B m", the graph to be bounded). In training mode batch normalisation takes the statistics of x, and
        running ones move towards them, as in a pass of the module."""
        if not (self.module.training and self._norm_of):
            return self.graph(x), self.graph
        values, graph = self.values(x)
        return values[graph.output], graph

    def values(self, x: Tensor) -> tuple[list[Tensor], Graph]:
        """What every node of the graph gives in the same pass, and that graph."""
        nodes, values = list(self.graph.nodes), [x]
        for i, node in enumerate(self.graph.nodes[1:], 1):
            inputs = [values[j] for j in node.inputs]
            if self.module.training and isinstance(node.op, BatchNorm) and self._norm_of[i].training:
                op = node.op.with_batch_statistics(inputs[0])
                self._move_statistics(self._norm_of[i], inputs[0], op)
                nodes[i] = node = dataclasses.replace(node, op=op)
            values.append(node.op.forward(*inputs))
        return values, dataclasses.replace(self.graph, nodes=tuple(nodes))

    @staticmethod
    @torch.no_grad()
    def _move_statistics(norm: Any, x: Tensor, op: BatchNorm) -> None:
        count = x.numel() // x.shape[1]
        norm.num_batches_tracked += 1
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(op.mean, share)
        norm.running_var.lerp_(op.variance * (count / max(1, count - 1)), share)  # PyTorch keeps the unbiased variance

    @contextmanager
    def attacked(self) -> Iterator[Classifier]:
        """For gradients by inputs alone: running statistics, and no gradients of parameters are computed."""
        training = self.module.training
        wanted = [p for p in self.module.parameters() if p.requires_grad]
        self.module.eval()
        for p in wanted:
            p.requires_grad_(False)
        try:
            yield self
        finally:
            for p in wanted:
                p.requires_grad_(True)
            self.module.train(training)
