"""What the evaluation of tilted chords may lose to rounding.

The evaluation (`bounds.tilted`) carries the row down through the layers: A over the input, met_i over the neurons r_i
of the layers before, a constant, and `here` over the layers' inputs v. Every number of it is a sum of products, and its
error is paid where it arises, so that the number may be taken as exact from there on. Whatever stands in front of a
variable costs at most `gamma` of the sizes of what it was added up from, times the variable's largest absolute value:
X of the input, R_i = max(u_i, 0) of r_i, and of v_k its own terms

    S_k = |E_k| X + |e_k| + sum_{i<k} |effect(i, k)| R_i.

Summed up over all numbers of a row that is `gamma(N) T`, where T is the row's expression with absolute values in place
of all terms and N the largest number of roundings that a term passes:

    T = |C| S_out + |D| X + |offset| + sum_k [H_k S_k + |high_k| |t_k| + |beta_k| max(|l|, |u|)
        + sum_p |tilted_p| (sum_y |g_py| Y_y + |c_p|)],      H_k = |low_k| slope + |high_k| s + |beta_k|,  Y = (X, R).

What rows of the reduced graph are off themselves (`Reduced.error`, err) enters where a row replaces its variable:
|C| err_out + sum_k H_k err_k. The plane of a tilted neuron needs c >= sup(-g y) and c >= sup(v - g y): its inner rows
have a T of their own, and what they lose, and err of v, is paid for by |tilted_p|. docs/rounding.md has the derivation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.ops.round_off import MORE, gamma, underflow

if TYPE_CHECKING:
    from bounds.tilted import Chain, InnerPass, Lines, Parameters, Tilts, Used


@dataclass(frozen=True, eq=False)
class Sizes:
    """Largest absolute values over "B" domains: x "n" of the inputs, r "B u_i" of each layer's neurons, and `rows`
    "B T", the sizes of the terms of every row of the chain; lost "B": what numbers below the smallest normal one may
    cost a row; roundings: how many a term passes at most."""

    x: Tensor
    r: list[Tensor]
    rows: Tensor
    lost: Tensor
    roundings: int

    @staticmethod
    def of(chain: Chain, lines: Lines) -> Sizes:
        x = chain.centre.abs() + chain.radius
        r = [u.clamp(min=0) for u in lines.u]
        rows = (chain.E.abs() @ x + chain.e.abs()).expand(len(r[0]) if r else 1, -1)
        for size, M, at in zip(r, chain.M, chain.rows, strict=True):
            rows = torch.cat([rows[:, :at.stop], rows[:, at.stop:] + size @ M.abs().T], 1)
        # Sums over inputs, outputs, and kept neurons (of a layer's planes, into the constant, and over all layers), and
        # a few additions and products a layer.
        roundings = len(x) + len(chain.e) + 3 * chain.hidden + 8 * (len(r) + 2)
        reach = 1 + x.sum() + rows.sum(1) + sum(t.sum(1) for t in r)
        return Sizes(x, r, rows, reach * underflow(roundings, x.dtype), roundings)

    def before(self, k: int) -> Tensor:
        """"B (n + u_0 + .. + u_k-1)": Y, the sizes of the input and all neurons before layer k."""
        return torch.cat([self.x.expand(len(self.rows), -1), *self.r[:k]], 1)

    def price(self, terms: Tensor, carried: Tensor) -> Tensor:
        """What rows "B ..." may be off by whose terms are of size `terms`, and `carried` by the reduction."""
        lost = self.lost.view(-1, *(1,) * (terms.dim() - 1))
        return MORE * (carried + terms * gamma(self.roundings, terms.dtype)) + lost


def price(chain: Chain, lines: Lines, tilts: Mapping[int, Tilts], parameters: Parameters, C: Tensor, offset: Tensor,
          D: Tensor | None, used: Mapping[int, Used]) -> Tensor:
    """By how much "B" the computed value of rows may exceed a lower bound of them; `used`: as traced on their way."""
    sizes = Sizes.of(chain, lines)
    out = C.abs()
    terms = (out * sizes.rows[:, chain.hidden:]).sum(1) + offset.abs()
    carried = out @ chain.error[chain.hidden:]
    if D is not None:
        terms = terms + D.abs() @ sizes.x
    for k, u in used.items():
        met = u.low.unsqueeze(1), u.high.unsqueeze(1)
        here, off = _at_layer(chain, lines, sizes, k, *met, parameters["slope", k, k].unsqueeze(1),
                              _unsqueezed(parameters.get(("beta", k, k))))
        terms, carried = terms + here.squeeze(1), carried + off.squeeze(1)
        if u.tilted is not None and u.g is not None and u.c is not None and u.inner is not None:
            weight = u.tilted.abs()
            plane = torch.einsum("bpy,by->bp", u.g.abs(), sizes.before(k)) + u.c.abs()
            terms = terms + (weight * plane).sum(1)
            carried = carried + (weight * missing(chain, lines, sizes, parameters, k, tilts[k].at, u.inner)).sum(1)
    return sizes.price(terms, carried)


def missing(chain: Chain, lines: Lines, sizes: Sizes, parameters: Parameters, k: int, at: Tensor, inner: InnerPass
            ) -> Tensor:
    """"B p": by how much the c of layer k's planes, above its neurons `at`, may be too small. The inner rows g and
    g - w are taken as computed: what g - w was rounded by is one more rounding of its terms."""
    terms = torch.einsum("bqy,by->bq", inner.rows.abs(), sizes.before(k)) + inner.constant.abs()
    carried = torch.zeros_like(terms)
    for j, (low, high) in inner.met.items():
        here, off = _at_layer(chain, lines, sizes, j, low, high, parameters["inner", k, j],
                              parameters.get(("inner beta", k, j)))
        terms, carried = terms + here, carried + off
    below, above = sizes.price(terms, carried).split(len(at), 1)
    return torch.maximum(below, above + chain.error[chain.rows[k]][at])


def _at_layer(chain: Chain, lines: Lines, sizes: Sizes, k: int, low: Tensor, high: Tensor, slope: Tensor,
              beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """(sizes of the terms, what the reduction was off) "B q": rows that met layer k with coefficients low and high
    "B q u_k", on lower lines of such slopes and on chords, and with multipliers beta on its bounds."""
    def wide(t: Tensor) -> Tensor:
        return t.unsqueeze(1)
    steep = low * slope + high.abs() * wide(lines.s[k])
    terms = (high.abs() * wide(lines.t[k].abs())).sum(2)
    if beta is not None:
        steep = steep + beta.abs()
        terms = terms + (beta.abs() * wide(torch.maximum(lines.l[k].abs(), lines.u[k].abs()))).sum(2)
    terms = terms + (steep * wide(sizes.rows[:, chain.rows[k]])).sum(2)
    return terms, steep @ chain.error[chain.rows[k]]


def _unsqueezed(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.unsqueeze(1)
