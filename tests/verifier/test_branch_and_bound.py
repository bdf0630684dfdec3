"""Branch and bound from outside: verdicts, progress, and what the JSON says about the choices made."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from verifier import robustness, verify
from verifier.branch_and_bound.bounding import Question
from verifier.branch_and_bound.domains import Domains, Pool
from verifier.property import Branch, Property, Region, Row
from verifier.strategy import as_json
from verifier.verdict import Falsified, Verified


def absolute(shift: float) -> nn.Module:
    """One input x; outputs (shift, |x|): class 0 stays on top while |x| < shift. CROWN alone is loose at 0."""
    first, second = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.zero_()
        second.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        second.bias.copy_(torch.tensor([shift, 0.0]))
    return nn.Sequential(first, nn.ReLU(), second)


def folded(random: np.random.Generator) -> nn.Module:
    """A random network whose margins change sign often."""
    layers: list[nn.Module] = []
    width = 3
    for _ in range(2):
        layers += [nn.Linear(width, 6), nn.ReLU()]
        width = 6
    net = nn.Sequential(*layers, nn.Linear(width, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.from_numpy(random.normal(size=tuple(p.shape)) * 1.2).float())
    return net


def searched() -> tuple[nn.Module, Property]:
    """A question that no bound method alone decides."""
    net = folded(np.random.default_rng(12))
    x = np.zeros(3, dtype=np.float32)
    label = int(net(torch.zeros(1, 3)).argmax())
    return net, robustness(x, label, 1.0, classes=3)


def graph_of(net: nn.Module, inputs: int):  # type: ignore[no-untyped-def]
    from bounds.graph import Graph
    return Graph.from_torch(net, (inputs,))


@pytest.mark.parametrize(("shift", "expected"), [(1.01, Verified), (0.99, Falsified)])
def test_a_fold_is_decided(shift: float, expected: type) -> None:
    net = absolute(shift)
    prop = robustness(np.zeros(1, dtype=np.float32), 0, 1, classes=2)
    result = verify(graph_of(net, 1), prop, replayer=net, method="bab")
    assert isinstance(result.verdict, expected)


@pytest.mark.parametrize("seed", range(6))
def test_bab_always_decides_and_samples_agree(seed: int) -> None:
    random = np.random.default_rng(seed)
    net = folded(random)
    x = random.normal(size=3).astype(np.float32)
    label = int(net(torch.from_numpy(x).unsqueeze(0)).argmax())
    prop = robustness(x, label, 0.4, classes=3)
    result = verify(graph_of(net, 3), prop, replayer=net, method="bab", time_limit_s=30)
    assert isinstance(result.verdict, Verified | Falsified), result
    points = torch.from_numpy(x) + (torch.rand(20000, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * 0.4
    with torch.no_grad():
        y = net(points)
    others = [j for j in range(3) if j != label]
    margin = float((y[:, [label]] - y[:, others]).min())
    if isinstance(result.verdict, Verified):
        assert margin >= result.lower - 1e-5
    else:
        assert result.upper <= 0


def test_the_choices_are_in_the_json() -> None:
    net, prop = searched()
    answer = json.loads(json.dumps(as_json(verify(graph_of(net, 3), prop, replayer=net, method="bab"))))
    assert answer["method"] == "branch-and-bound" and answer["domains"] > 3
    choice = answer["choices"]["branch-and-bound"]
    assert choice["inputs"] and "free" in choice["why"]


def test_a_branch_is_searched_with_its_own_rows_and_closed_at_zero_only_if_all_are_strict() -> None:
    """Branches of one row and of two share a table."""
    region = Region((Fraction(0),), (Fraction(1),))
    closed, strict = (Row(((0, Fraction(1)),), (), Fraction(k), strict=k > 0) for k in (0, 1))
    branches = ((closed,), (strict, strict), (closed, strict), (strict,), (strict, closed), (closed,))
    tensors = Property(tuple(Branch(region, rows) for rows in branches), 1, 1).tensors((1,), dtype=torch.float64)
    question = Question.of(tensors)
    assert question.mask.sum(1).tolist() == [len(rows) for rows in branches]
    for k, (rows, mask) in enumerate(zip(question.rows, question.mask, strict=True)):
        assert tensors.branch[rows[mask]].tolist() == [k] * len(branches[k])
    assert (question.target > 0).tolist() == [closed in rows for rows in branches]


def domains(lower: list[float]) -> Domains:
    count = len(lower)
    others = [f.name for f in dataclasses.fields(Domains) if f.name not in ("lower", "node")]
    fields = dict.fromkeys(others, torch.zeros(count, 1))
    return Domains(lower=torch.tensor(lower), node=torch.arange(count), **fields)


def test_the_pool_hands_out_the_lowest_first_and_keeps_the_rest() -> None:
    pool = Pool(1 << 30)
    pool.push(domains([3.0, -1.0, 2.0]))
    pool.push(domains([0.0, 5.0, -4.0]))
    assert sorted(pool.pop(2).lower.tolist()) == [-4.0, -1.0]
    assert sorted(pool.pop(3).lower.tolist()) == [0.0, 2.0, 3.0]
    assert pool.pop(9).lower.tolist() == [5.0]
    assert not len(pool)


def test_a_full_pool_hands_out_the_nearest_to_closing_first() -> None:
    pool = Pool(0)
    pool.push(domains([3.0, -1.0, 2.0]))
    assert pool.pop(1).lower.tolist() == [3.0]
    assert sorted(pool.pop(2).lower.tolist()) == [-1.0, 2.0]


def test_progress_is_one_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("verifier.branch_and_bound.stage.REPORT_S", 0.0)
    net, prop = searched()
    with caplog.at_level("INFO", logger="verifier.progress"):
        verify(graph_of(net, 3), prop, replayer=net, method="bab")
    assert all(word in caplog.messages[0] for word in ("bound", "open", "domains", "depth", "left"))
