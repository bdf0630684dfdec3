"""Networks of sigmoids, tanhs, softplus and elu: their answers account for rounding, and near zero they stay honest."""

from __future__ import annotations

import dataclasses

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf
from torch import nn

from bounds.graph import Graph
from bounds.interval import Interval
from verifier import robustness, verify
from verifier.branch_and_bound import confirm
from verifier.branch_and_bound.domains import Domains, Layout
from verifier.problem import Double
from verifier.verdict import Evidence, Falsified, Verified
from verifier.vnnlib import read_vnnlib

ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "elu": nn.ELU}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_dtype = pytest.mark.parametrize("small", [0, 100_000], ids=["float32", "float64"])  # so many weights are doubled


def network(activation: str, seed: int, inputs: int = 24, width: int = 10, scale: float = 2.5) -> nn.Sequential:
    torch.manual_seed(seed)
    layer = ACTIVATIONS[activation]
    net = nn.Sequential(nn.Linear(inputs, width), layer(), nn.Linear(width, width), layer(), nn.Linear(width, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(scale)
    return net.eval()


@every_dtype
@every_activation
@pytest.mark.parametrize("method", ["auto", "ibp", "crown", "alpha-crown", "bab"])
def test_what_is_verified_accounts_for_rounding(method: str, activation: str, small: int,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", small)
    net = network(activation, 1)
    x = np.zeros(24, dtype=np.float32)
    label = int(net(torch.zeros(1, 24)).argmax())
    result = verify(Graph.from_torch(net, (24,)), robustness(x, label, 1e-3, classes=3), replayer=net, method=method,
                    time_limit_s=20)
    assert isinstance(result.verdict, Verified)
    assert result.evidence is Evidence.ROUNDED


@pytest.mark.parametrize(("activation", "scale"), [("tanh", 2.5), ("sigmoid", 5.0)])
def test_searches_in_single_precision_that_split_smooth_neurons_are_confirmed(
        activation: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Radii at which bounds alone do not decide, and how often float64 was asked about split neurons."""
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", 0)
    monkeypatch.setattr("verifier.branch_and_bound.cut.MOST_ENTRIES", 0)  # as if the network were large
    asked = []
    before = confirm.Confirmer.confirm

    def noted(self: confirm.Confirmer, domains: Domains, *args: object) -> torch.Tensor:
        asked.append(int((domains.sides != 0).sum()))
        return before(self, domains, *args)  # type: ignore[arg-type]
    monkeypatch.setattr(confirm.Confirmer, "confirm", noted)
    split = 0
    for seed in range(3):
        net = network(activation, seed, scale=scale)
        graph, x = Graph.from_torch(net, (24,)), np.zeros(24, dtype=np.float32)
        label = int(net(torch.zeros(1, 24)).argmax())
        low, high = 0.0, 0.4
        for _ in range(7):
            eps = (low + high) / 2
            asked.clear()
            result = verify(graph, robustness(x, label, eps, classes=3), replayer=net, method="bab", time_limit_s=2)
            if not isinstance(result.verdict, Verified):
                high = eps
                continue
            low = eps
            assert result.evidence is Evidence.ROUNDED
            split += sum(asked)
            with torch.no_grad():
                y = net((torch.rand(4000, 24) * 2 - 1) * eps).double()
            others = [k for k in range(3) if k != label]
            assert float((y[:, [label]] - y[:, others]).min()) > 0
    assert split > 0


def test_what_is_confirmed_rests_on_cuts_alone() -> None:
    """A neuron's bounds in the search may be tighter than what its splits say: float64 must not inherit them."""
    graph = Graph.from_torch(network("tanh", 0, inputs=2, width=3), (2,)).simplify()
    layout = Layout.of(graph)
    neurons = layout.total - layout.inputs
    like = torch.zeros(1, neurons)
    cuts = torch.tensor([-torch.inf, torch.inf]).view(1, 2, 1).repeat(1, 1, neurons)
    fields = dict.fromkeys((f.name for f in dataclasses.fields(Domains)), torch.zeros(1, 0))
    root = Domains(**fields | {
        "z_low": like - 5, "z_high": like + 5, "sides": like.to(torch.int8), "cuts": cuts, "depth": torch.zeros(1),
        "fences": torch.zeros(1, 2, 0), "choice": torch.tensor([layout.inputs + 1]), "point": torch.tensor([0.25]),
        "region": torch.zeros(1, dtype=torch.long), "node": torch.zeros(1)})
    lower, upper = (root.children(layout).take(torch.tensor([k])) for k in (0, 1))
    assert float(lower.cuts[0, 1, 1]) == 0.25 and float(lower.cuts[0, 0, 1]) == -torch.inf
    assert float(upper.cuts[0, 0, 1]) == 0.25 and float(upper.cuts[0, 1, 1]) == torch.inf
    upper.z_low[0, 1] = 3.0  # what the search made of it
    upper.choice, upper.point = torch.tensor([layout.inputs + 1]), torch.tensor([0.5])
    again = upper.children(layout).take(torch.tensor([0]))
    proved = {i: Interval(torch.full((1, *s), -4.0), torch.full((1, *s), 4.0)).map(torch.Tensor.double)
              for i, s in zip(layout.nodes, layout.shapes, strict=True)}

    class Fake:
        graph: Graph
    fake = Fake()
    fake.graph = graph
    low, high = confirm.Confirmer(fake, Double(graph, None, proved))._sides(again, layout)  # type: ignore[arg-type]
    assert (float(low[0, 1]), float(high[0, 1])) == (0.25, 0.5)
    assert float(low[0, 0]) == -4 and float(high[0, 2]) == 4


@every_dtype
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("method", ["auto", "crown", "alpha-crown", "bab"])
def test_values_that_are_reached_are_never_verified_as_out_of_reach(
        method: str, activation: str, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One increasing neuron: its least value is known in 60 digits. The number next above it is reached, so a limit
    there is not safe; a little below it, it is."""
    monkeypatch.setattr("verifier.problem.SMALL_WEIGHTS", small)
    proved = 0
    for seed in range(4):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, 1), ACTIVATIONS[activation](), nn.Linear(1, 1)).eval()
        with torch.no_grad():
            net[0].weight.copy_(net[0].weight.abs() + 0.5)
            net[2].weight.copy_(net[2].weight.abs() + 0.5)
        w, b, v, c = (mpf(p.item()) for p in (net[0].weight, net[0].bias, net[2].weight, net[2].bias))
        with mpmath.workdps(60):
            low = mpf(float(np.float32(0.125 * seed - 0.25)))
            z = w * low + b
            least = v * (mpmath.tanh(z) if activation == "tanh" else 1 / (1 + mpmath.exp(-z))) + c
            reached = float(least)
            reached = reached if mpf(reached) >= least else float(np.nextafter(reached, np.inf))
            out = float(least - mpf(2) ** -14)
        ends = f"(assert (>= X_0 {float(low)!r}))(assert (<= X_0 {float(low) + 0.25!r}))"
        for limit, safe in ((reached, False), (out, True)):
            text = f"(declare-const X_0 Real)(declare-const Y_0 Real){ends}(assert (<= Y_0 {limit:.60f}))"
            result = verify(Graph.from_torch(net, (1,)), read_vnnlib(text.encode()), replayer=net, method=method,
                            time_limit_s=1)
            assert safe or not isinstance(result.verdict, Verified), (seed, result)
            assert not (safe and isinstance(result.verdict, Falsified))
            if isinstance(result.verdict, Verified):
                assert result.evidence is Evidence.ROUNDED
                proved += 1
    assert proved > 0

