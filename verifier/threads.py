"""How many threads a question gets: small networks one, others as many as the process was given.

Threads that meet after each small operation wait for each other, and on a busy machine for the scheduler. An ACAS Xu
instance on two cores: 0.38 s with one thread or two on a quiet machine; beside two other processes 0.38 s with one
and 3.9 s with two. A small convolutional network gains from the second (2.5 s against 3.0 s), so it keeps it. A lattice
network, sparse once simplified, beside others: 1.4 s of CPU time with one thread, 2.7 to 6.6 s with two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bounds.graph import Graph
from verifier.problem import SMALL_WEIGHTS, is_convolutional


def is_small(graph: Graph) -> bool:
    """Dense with few weights that are not zero: where most are, its layers are many and narrow."""
    weights = sum(int(p.count_nonzero()) for p in graph.parameters())
    return weights <= SMALL_WEIGHTS and not is_convolutional(graph)


@contextmanager
def threads_for(graph: Graph) -> Iterator[None]:
    """Inside the block PyTorch uses one thread if the graph (in the form that is searched) is small; afterwards as many
    as before."""
    before = torch.get_num_threads()
    try:
        if is_small(graph):
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
