"""The softmax at the end of a network, which keeps the order of the outputs: the graph without it."""

from __future__ import annotations

import dataclasses
import math

from bounds.graph import Graph, UnsupportedOperator

SOFTMAXES = ("softmax", "logsoftmax")


def ends_in_softmax(graph: Graph) -> bool:
    return graph.nodes[graph.output].op.kind.lower() in SOFTMAXES


def logits_of(graph: Graph) -> Graph | None:
    """The graph up to a softmax at its end that runs over all outputs; None where there is none, or where it runs over
    groups of outputs and so changes the order between groups."""
    last = graph.nodes[graph.output]
    if not ends_in_softmax(graph) or last.shape[last.op.axis] != math.prod(last.shape):  # type: ignore[attr-defined]
        return None
    output = last.inputs[0]
    return dataclasses.replace(graph, nodes=graph.nodes[: output + 1], output=output)


def ranking_of(graph: Graph) -> Graph:
    """The graph up to a softmax at its end: its outputs, flat, have the same order. Raises UnsupportedOperator where
    the softmax runs over groups of outputs."""
    if not ends_in_softmax(graph):
        return graph
    logits = logits_of(graph)
    if logits is None:
        last = graph.nodes[graph.output]
        raise UnsupportedOperator(f"{graph.source}: {last.op.kind} at the end (node {last.name}) "
                                  f"runs over one axis of {last.shape}; only over all outputs it keeps their order")
    return logits
