"""What the evaluation of leaning planes may lose to rounding, beside what `bounds.rounding` pays for.

Rows come down to the ReLUs of the first layer, and leave its input, as any row does. In between they are taken apart by
hand (`bounds.leaning`), which costs

- for coefficients that take lower lines what their slopes cost at the layer's input (`Prices.base`);
- for a plane `g x + c` what the sums of c = max(sup(-g x), sup(v - g x)) lose, and what the neuron's value v is off by
  itself, so that c is too small by at most `short`; this counts by |a|, the coefficient that takes the plane;
- for the sums `a c` and, into the coefficients of the input, `a g` and the rows' own part D, `gamma` of their terms.

docs/rounding.md has the derivation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.ops.round_off import MORE, gamma, underflow
from bounds.rounding import Prices

if TYPE_CHECKING:
    from bounds.leaning import FirstLayer, Met, Seen


def price(prices: Prices, layer: FirstLayer, seen: Seen, met: Met) -> Tensor:
    """By how much "R" the computed value of rows may exceed a lower bound of them, the rest of their way paid for."""
    (source,) = prices.graph.nodes[layer.node].inputs
    dtype = met.c.dtype
    through = _spent(met.through, met.owner.rows(prices.base(layer.node).flatten(1)))
    short, plane = missing(prices, layer, seen, met), _plane(seen, met)
    count = met.a.shape[1] + 2
    x = prices.size(0).flatten(1)
    sums = _spent(met.a, met.c.abs() + short + plane)
    for coefficients in met.others:
        sums = sums + _spent(coefficients, met.owner.rows(x))
    lost = underflow(count, dtype) * (1 + x.sum(1).amax() + prices.size(source).sum())
    return through + _spent(met.a, short) + gamma(count, dtype) * sums + lost


def missing(prices: Prices, layer: FirstLayer, seen: Seen, met: Met) -> Tensor:
    """By how much "R m" the constants c of planes may be too small."""
    (source,) = prices.graph.nodes[layer.node].inputs
    terms = (seen.windows.weight.abs() * _reach(seen)).sum(2) + 2 * _plane(seen, met) + seen.windows.bias.abs()
    count = 2 * met.planes.shape[2] + 2
    short = MORE * gamma(count, terms.dtype) * terms + underflow(count, terms.dtype)
    off = prices.error(source)
    return short if off is None else short + met.owner.rows(off.flatten(1))[:, layer.neurons]


def _plane(seen: Seen, met: Met) -> Tensor:
    """"R m": the size of the terms of g x."""
    return (met.planes.abs() * _reach(seen)).sum(2)


def _reach(seen: Seen) -> Tensor:
    """"R m k": the largest absolute values of the inputs that each neuron sees."""
    return seen.centre.abs() + seen.radius


def _spent(coefficients: Tensor, cost: Tensor) -> Tensor:
    """"R": what coefficients "R k" cost; those that are zero nothing, whatever the cost."""
    return MORE * torch.where(coefficients == 0, torch.zeros_like(coefficients), coefficients.abs() * cost).sum(1)
