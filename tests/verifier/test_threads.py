"""Small networks are worked on by one thread, and the number of threads is given back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from bounds import Graph
from verifier.demo import EXAMPLES
from verifier.threads import is_small, threads_for


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("name", "threads"), [("digits_mlp", 1), ("digits_cnn", 2)])
def test_only_small_networks_give_up_threads(name: str, threads: int) -> None:
    graph = Graph.from_onnx(EXAMPLES / f"{name}.onnx")
    with threads_for(graph):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="inside"), threads_for(graph):
        raise RuntimeError("inside")
    assert torch.get_num_threads() == 2


def test_zeros_are_no_weights() -> None:
    wide = nn.Linear(1000, 1000)
    graph = Graph.from_torch(wide, (1000,))
    assert not is_small(graph)
    wide.weight.data[:, 3:] = 0
    assert is_small(graph)
