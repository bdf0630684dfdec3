"""Neurons that repeat or mirror each other are kept once; exactly, before anything is rounded.

Networks built from comparisons (`max(a, b)` written with ReLUs of `a - b`, `b - a`, `a + b` and `-a - b`: lattices,
sorting networks; concatenated ReLUs, arXiv:1603.05201) hold neurons whose pre-activations are equal or opposite.
Relaxed one by one they lose what ties them together. Over the reals

    relu(-z) = relu(z) - z,

so of a mirrored pair one ReLU stays, beside a linear path around it, and `relu(z) - relu(-z)` is no ReLU at all:
`max(a, b)` becomes `b + relu(a - b)`. Equal rows of a dense layer are kept once, and the columns that read them added;
neurons that nobody reads go.

Only layers whose parameters are as stored take part, and only where every sum and product of parameters that is formed
has no rounding in float64: the result is the stored function itself. The path is laid where interval arithmetic loses
nothing by it (`|z|` stays two ReLUs: `2 relu(z) - z` has wider intervals). Left out: maps (convolutions), neurons that
agree only up to a factor, constant neurons, layers with very many entries.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bounds.graph.draft import Draft
from bounds.ops.add import Add
from bounds.ops.base import Elementwise, Operator
from bounds.ops.gather import Gather
from bounds.ops.linear import Linear
from bounds.ops.relu import Relu

_EXACT = 2.0**53     # integers up to here are exact in float64
_MOST_ENTRIES = 1 << 23  # nonzero entries of a layer that takes part, and summands of a product: 64 MB each
_WIDER = 1e-6        # intervals may get wider by this share: sums round
_SEED = 20260101


# ---------------------------------------------------------------------- exact sums


def last_bit(t: Tensor) -> Tensor:
    """The largest power of two of which an entry is a multiple, in float64; infinity for zero."""
    t = t.double().abs()
    bits = t.view(torch.int64)
    shortened = (bits & (bits - 1)).view(torch.float64)  # the lowest bit of the mantissa cleared, if there is one
    power = (bits & (2**52 - 1)) == 0
    return torch.where(t == 0, torch.full_like(t, torch.inf), torch.where(power, t, t - shortened))


@dataclass(frozen=True, eq=False)
class Exact:
    """A float64 matrix known without error, as its entries that are not zero: value[k] at (row[k], column[k]), by row
    and then by column.

    Sums and products return None where rounding in float64 could not be ruled out: the summands of an entry are
    multiples of one power of two, and their sizes must add up to less than 2^53 times that."""

    row: Tensor
    column: Tensor
    value: Tensor
    shape: tuple[int, int]

    @staticmethod
    def of(weight: Tensor) -> Exact:
        at = _nonzero(weight)
        row, column = at // weight.shape[1], at % weight.shape[1]
        return Exact(row, column, weight[row, column].double(), (weight.shape[0], weight.shape[1]))

    @staticmethod
    def signed(place: Tensor, sign: Tensor, columns: int) -> Exact:
        """One entry a row: sign[i] (not zero) at column place[i]."""
        row = sign.nonzero().squeeze(1)
        return Exact(row, place[row], sign[row], (len(place), columns))

    @staticmethod
    def identity(size: int, like: Tensor) -> Exact:
        every = torch.arange(size, device=like.device)
        return Exact.signed(every, like.new_ones(size), size)

    def is_identity(self) -> bool:
        return self.shape[0] == self.shape[1] == len(self.row) and bool((self.row == self.column).all()) \
            and bool((self.value == 1).all())

    def extents(self) -> tuple[Tensor, Tensor]:
        """(how many entries each row has, where they start)."""
        counts = torch.bincount(self.row, minlength=self.shape[0])
        return counts, counts.cumsum(0) - counts

    def beside(self, other: Exact | None) -> Exact:
        """Columns of another matrix behind these."""
        if other is None:
            return self
        row = torch.cat([self.row, other.row])
        order = row.argsort(stable=True)
        return Exact(row[order], torch.cat([self.column, other.column + self.shape[1]])[order],
                     torch.cat([self.value, other.value])[order], (self.shape[0], self.shape[1] + other.shape[1]))

    def dense(self) -> Tensor:
        return self.value.new_zeros(self.shape).index_put_((self.row, self.column), self.value)

    def rows(self, chosen: Tensor) -> Exact:
        """Rows `chosen` (rising)."""
        number = self.row.new_full((self.shape[0],), -1)
        number[chosen] = torch.arange(len(chosen), device=chosen.device)
        at = number[self.row] >= 0
        return Exact(number[self.row[at]], self.column[at], self.value[at], (len(chosen), self.shape[1]))

    def columns(self, chosen: Tensor) -> Exact:
        """Columns `chosen` (rising)."""
        number = self.column.new_full((self.shape[1],), -1)
        number[chosen] = torch.arange(len(chosen), device=chosen.device)
        at = number[self.column] >= 0
        return Exact(self.row[at], number[self.column[at]], self.value[at], (self.shape[0], len(chosen)))

    @staticmethod
    def _summed(row: Tensor, column: Tensor, value: Tensor, bit: Tensor, shape: tuple[int, int]) -> Exact | None:
        place, of = (row * shape[1] + column).unique(return_inverse=True)
        sizes = value.new_zeros(len(place)).index_add_(0, of, value.abs())
        least = value.new_full((len(place),), torch.inf).scatter_reduce(0, of, bit, "amin")
        if not bool((sizes < _EXACT * least).all()):
            return None
        total = value.new_zeros(len(place)).index_add_(0, of, value)
        place, total = place[total != 0], total[total != 0]
        return Exact(place // shape[1], place % shape[1], total, shape)

    def row_sizes(self, scale: Tensor | None = None) -> Tensor:
        """The sum of |entries| of each row (up to rounding), columns scaled by `scale` >= 0."""
        size = self.value.abs() if scale is None else self.value.abs() * scale[self.column]
        return size.new_zeros(self.shape[0]).index_add_(0, self.row, size)

    def columns_to(self, place: Tensor, factor: Tensor, count: int) -> Exact | None:
        """Column j, times factor[j] in {-1, 0, 1}, is added to column place[j] of a matrix with `count` columns."""
        value = self.value * factor[self.column]
        return self._summed(self.row, place[self.column], value, last_bit(value), (self.shape[0], count))

    def plus(self, other: Exact) -> Exact | None:
        value = torch.cat([self.value, other.value])
        return self._summed(torch.cat([self.row, other.row]), torch.cat([self.column, other.column]), value,
                            last_bit(value), self.shape)

    def times(self, other: Exact) -> Exact | None:
        """The product, for factors with few entries: its summands are formed one by one."""
        counts, starts = other.extents()
        many = counts[self.column]
        if int(many.sum()) > _MOST_ENTRIES:
            return None
        term = torch.arange(len(many), device=many.device).repeat_interleave(many)
        offset = torch.arange(len(term), device=many.device) - (many.cumsum(0) - many)[term]
        at = starts[self.column[term]] + offset
        bit = last_bit(self.value)[term] * last_bit(other.value)[at]
        return self._summed(self.row[term], other.column[at], self.value[term] * other.value[at], bit,
                            (self.shape[0], other.shape[1]))


def _nonzero(weight: Tensor) -> Tensor:
    """Flat positions of the entries that are not zero, in order. Where they are few, looking at eight entries at a time
    is six times as fast as `Tensor.nonzero`."""
    there = (weight != 0).flatten()
    eights = torch.nn.functional.pad(there, (0, -len(there) % 8)).view(torch.int64).nonzero()
    at = (8 * eights + torch.arange(8, device=weight.device)).flatten()
    at = at[at < len(there)]
    return at[there[at]]


# ---------------------------------------------------------------------- equal and opposite rows


def alike(matrix: Exact) -> tuple[Tensor, Tensor]:
    """(representative "rows", sign "rows"): each row is its sign times its representative, the first row of the kind;
    signs are +-1, and 0 for a row of zeros."""
    count, device = matrix.shape[0], matrix.value.device
    counts, starts = matrix.extents()
    sign: Tensor = matrix.value.new_zeros(count)
    filled = counts > 0
    sign[filled] = matrix.value[starts[filled]].sign()
    first = _first(_keys(matrix, sign))
    # Keys may agree by accident.
    same = counts == counts[first]
    at = torch.arange(len(matrix.row), device=device)
    twin = (at - starts[matrix.row] + starts[first[matrix.row]]).clamp(max=max(0, len(at) - 1))
    agrees = (matrix.column == matrix.column[twin]) & (
        matrix.value * sign[matrix.row] == matrix.value[twin] * sign[first[matrix.row]])
    same &= torch.ones(count, dtype=torch.bool, device=device).index_put((matrix.row[~agrees],), same.new_zeros(()))
    first = torch.where(same, first, torch.arange(count, device=device))
    return first, sign * torch.where(same, sign[first], sign)


def _keys(matrix: Exact, sign: Tensor) -> Tensor:
    """A number for each row, the same for rows that are equal after multiplication by their signs."""
    generator = torch.Generator().manual_seed(_SEED)
    multiplier = 2 * torch.randint(-2**62, 2**62, (matrix.shape[1],), generator=generator).to(sign.device) + 1
    bits = (matrix.value * sign[matrix.row]).view(torch.int64)
    # Round numbers have all their ones at the top, where products overflow: bring those down.
    term = (bits ^ (bits >> 32) ^ (bits >> 52)) * multiplier[matrix.column]
    return torch.zeros(len(sign), dtype=torch.int64, device=sign.device).index_add_(0, matrix.row, term)  # wraps around


def _first(key: Tensor) -> Tensor:
    """For each entry the first place at which its key stands."""
    _, group = key.unique(return_inverse=True)
    place = torch.arange(len(key), device=key.device)
    return place.new_full((len(key),), len(key)).scatter_reduce(0, group, place, "amin")[group]


def nothing_repeats(weight: Tensor) -> bool:
    """A cheap test that no two rows can be equal or opposite: the sizes of their largest entries all differ."""
    low, high = weight.aminmax(dim=1)
    return len(torch.maximum(-low, high).unique()) == len(weight)


def numbered(representative: Tensor) -> tuple[Tensor, Tensor]:
    """(the representatives in order, where each row's one stands among them)."""
    kept = representative.unique()
    return kept, torch.searchsorted(kept, representative)


# ---------------------------------------------------------------------- the pass


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a node's value is found in the new graph: entry i is entry index[i] of node `key` (None: entry i)."""

    key: int
    index: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Layer:
    """A dense layer over node `source` of the new graph: weight "out in", bias "out 1" (None: there is none)."""

    source: int
    weight: Exact
    bias: Exact | None

    def rows(self, chosen: Tensor) -> _Layer:
        return _Layer(self.source, self.weight.rows(chosen), None if self.bias is None else self.bias.rows(chosen))

    def times(self, S: Exact) -> _Layer:
        """Rows chosen, repeated and negated by S, which has at most one entry (1 or -1) a row."""
        weight, bias = S.times(self.weight), None if self.bias is None else S.times(self.bias)
        assert weight is not None and (bias is None) == (self.bias is None), "one summand has no rounding"
        return _Layer(self.source, weight, bias)


@dataclass(frozen=True, eq=False)
class _Mirrored:
    """A dense layer before a ReLU, its rows up to sign: row i is sign[i] times row place[i] of `layer`."""

    layer: _Layer
    place: Tensor
    sign: Tensor

    def equal_only(self) -> _Mirrored:
        """The same with opposite rows apart."""
        kept, place = numbered(_first(3 * self.place + self.sign.long()))
        S = Exact.signed(self.place[kept], self.sign[kept], self.layer.weight.shape[0])
        return _Mirrored(self.layer.times(S), place, self.sign.abs())


def mirror(drafts: dict[int, Draft], output: int) -> tuple[dict[int, Draft], int]:
    """The same function with repeated and mirrored neurons kept once: (new drafts in order, new output)."""
    return _Pass(drafts, output).run()


class _Pass:
    def __init__(self, drafts: dict[int, Draft], output: int) -> None:
        self.drafts = drafts
        self.output = output
        self.readers: dict[int, list[int]] = {i: [] for i in drafts}
        for i, draft in drafts.items():
            for j in draft.inputs:
                self.readers[j].append(i)
        self.new: dict[int, Draft] = {}
        self.places: dict[int, _Place] = {}
        self.wholes: dict[int, int] = {}
        self.mirrored: dict[int, _Mirrored] = {}
        self.dense: dict[int, bool] = {}

    def run(self) -> tuple[dict[int, Draft], int]:
        for i in sorted(self.drafts):
            draft = self.drafts[i]
            if self._is_dense(i):
                self._dense(i)
            elif i in self.mirrored:
                pass  # the ReLU of mirrored neurons: its reader makes it
            elif _is_uniform(draft.op) and self.places[draft.inputs[0]].index is not None:
                place = self.places[draft.inputs[0]]
                key = self._emit(draft, name=f"{draft.name}~", inputs=(place.key,), shape=self.new[place.key].shape)
                self.places[i] = _Place(key, place.index)
            else:
                key = self._emit(draft, inputs=tuple(self._whole(j) for j in draft.inputs))
                self.places[i] = _Place(key)
        return self.new, self._whole(self.output)

    def _emit(self, draft: Draft, **changes: Any) -> int:
        key = len(self.new)
        self.new[key] = dataclasses.replace(draft, **changes)
        return key

    def _whole(self, i: int) -> int:
        """The new node that holds node i's value entry by entry."""
        place = self.places[i]
        if place.index is None:
            return place.key
        if i not in self.wholes:
            draft = self.drafts[i]
            self.wholes[i] = self._emit(draft, op=Gather(0, place.index), inputs=(place.key,), radii={})
        return self.wholes[i]

    # ------------------------------------------------------------------ which nodes take part

    def _is_dense(self, i: int) -> bool:
        if i not in self.dense:
            draft = self.drafts[i]
            op = draft.op
            self.dense[i] = type(op) is Linear and len(draft.shape) == 1 \
                and all(r is None for r in draft.radii.values()) and int(op.weight.count_nonzero()) <= _MOST_ENTRIES
        return self.dense[i]

    def _may_shrink(self, i: int) -> bool:
        """Whether all that reads node i can read fewer neurons: dense layers, behind none or some uniform nodes."""
        waiting, seen = [i], {i}
        while waiting:
            k = waiting.pop()
            if k == self.output:
                return False
            for j in self.readers[k]:
                if j in seen or self._is_dense(j):
                    continue
                if not _is_uniform(self.drafts[j].op):
                    return False
                seen.add(j)
                waiting.append(j)
        return True

    def _relu_behind(self, i: int) -> int | None:
        """The ReLU that alone reads dense layer i and is itself read by one dense layer alone."""
        if i == self.output or len(self.readers[i]) != 1:
            return None
        (j,) = self.readers[i]
        alone = isinstance(self.drafts[j].op, Relu) and j != self.output and len(self.readers[j]) == 1
        return j if alone and self._is_dense(self.readers[j][0]) else None

    def _mirrors(self, i: int, first: Tensor, sign: Tensor) -> bool:
        """Whether dense layer i has rows that are not needed before the ReLU behind it."""
        return self._relu_behind(i) is not None and (bool((sign < 1).any()) or len(first.unique()) < len(first))

    # ------------------------------------------------------------------ dense layers

    def _dense(self, i: int) -> None:
        draft, op = self.drafts[i], self.drafts[i].op
        assert isinstance(op, Linear), "asked of dense layers"
        before = self.mirrored.get(draft.inputs[0])
        if before is not None:
            if self._around(i, before) or self._around(i, before.equal_only()):
                return
            self._as_stored(draft.inputs[0])
        relu = self._relu_behind(i)
        shrinks = relu is not None or self._may_shrink(i)
        shrunk = self.places[draft.inputs[0]].index is not None
        if not shrunk and (not shrinks or nothing_repeats(op.weight)):
            self._keep(i)
            return
        layer = self._read(i)
        first, sign = alike(layer.weight.beside(layer.bias))
        if relu is not None and self._mirrors(i, first, sign):
            representatives, place = numbered(first)
            self.mirrored[relu] = _Mirrored(layer.rows(representatives), place, sign)
            return
        kept, index = _equal(first, sign) if shrinks else (None, None)
        if kept is not None:
            self.places[i] = _Place(self._emit_layer(draft, f"{draft.name}~", layer.rows(kept)), index)
        elif layer.weight.shape[1] < op.weight.shape[1]:
            self.places[i] = _Place(self._emit_layer(draft, draft.name, layer))
        else:
            self._keep(i)

    def _keep(self, i: int) -> None:
        """Dense layer i with its parameters as stored."""
        draft = self.drafts[i]
        self.places[i] = _Place(self._emit(draft, inputs=(self._whole(draft.inputs[0]),)))

    def _read(self, i: int) -> _Layer:
        """Dense layer i over what is left of its input."""
        op, place = self.drafts[i].op, self.places[self.drafts[i].inputs[0]]
        assert isinstance(op, Linear), "asked of dense layers"
        weight = Exact.of(op.weight)
        bias = None if op.bias is None else Exact.of(op.bias.unsqueeze(1))
        if place.index is not None:
            ones = weight.value.new_ones(len(place.index))
            merged = weight.columns_to(place.index, ones, self.new[place.key].shape[0])
            if merged is not None:
                return _Layer(place.key, merged, bias)
        return _Layer(self._whole(self.drafts[i].inputs[0]), weight, bias)

    def _emit_layer(self, draft: Draft, name: str, layer: _Layer) -> int:
        bias = None if layer.bias is None else layer.bias.dense().squeeze(1)
        return self._emit(draft, name=name, op=Linear(layer.weight.dense(), bias), inputs=(layer.source,),
                          shape=(layer.weight.shape[0],),
                          radii={"weight": None} if bias is None else {"weight": None, "bias": None})

    # ------------------------------------------------------------------ a linear path around mirrored neurons

    def _as_stored(self, relu: int) -> None:
        """Make a ReLU and the layer before it after all, one neuron for each stored one."""
        mirrored = self.mirrored.pop(relu)
        S = Exact.signed(mirrored.place, mirrored.sign, mirrored.layer.weight.shape[0])
        front = self.drafts[self.drafts[relu].inputs[0]]
        key = self._emit_layer(front, front.name, mirrored.layer.times(S))
        self.places[relu] = _Place(self._emit(self.drafts[relu], inputs=(key,)))

    def _around(self, i: int, mirrored: _Mirrored) -> bool:
        """Dense layer i behind mirrored neurons, `W relu(S z) = P relu(z) + L z`; False where that would round
        or loosen interval arithmetic."""
        draft, op, head = self.drafts[i], self.drafts[i].op, mirrored.layer
        relu = self.drafts[draft.inputs[0]]
        front = self.drafts[relu.inputs[0]]
        assert isinstance(op, Linear) and isinstance(front.op, Linear), "asked of dense layers"
        weight, count = Exact.of(op.weight), head.weight.shape[0]
        P = weight.columns_to(mirrored.place, mirrored.sign.abs(), count)
        L = weight.columns_to(mirrored.place, mirrored.sign.clamp(max=0), count)
        if P is None or L is None:
            return False
        bias = None if op.bias is None else Exact.of(op.bias.unsqueeze(1))
        path = None
        if L.shape[0] * head.weight.shape[1] <= op.weight.numel() + front.op.weight.numel():
            path = self._path(L, head, bias)
        if not self._is_tight(weight, P, L, None if path is None else path[0], mirrored):
            return False
        kept, index, behind = None, None, None
        if path is not None:
            V, bias = path
            first, sign = alike(P.beside(V).beside(bias))
            if self._mirrors(i, first, sign):
                kept, behind = numbered(first)
            elif self._may_shrink(i):
                kept, index = _equal(first, sign)
            if kept is not None:
                P, V, bias = P.rows(kept), V.rows(kept), None if bias is None else bias.rows(kept)
        name = draft.name if kept is None else f"{draft.name}~"
        ends = []
        nonlinear, linear = P.column.unique(), L.column.unique()
        if len(nonlinear):
            z = head.rows(nonlinear)
            plain = z.bias is None and z.weight.is_identity()
            key = head.source if plain else self._emit_layer(front, f"{front.name}~", z)
            key = self._emit(relu, name=f"{relu.name}~", inputs=(key,), shape=(len(nonlinear),))
            ends.append(_Layer(key, P.columns(nonlinear), None))
        if path is None:
            key = self._emit_layer(front, f"{front.name}~~", head.rows(linear))
            ends.append(_Layer(key, L.columns(linear), None))
        elif len(V.value) or not ends:
            ends.append(_Layer(head.source, V, None))
        ends[0] = dataclasses.replace(ends[0], bias=bias)
        if len(ends) == 1:
            key = self._emit_layer(draft, name, ends[0])
        else:
            keys = (self._emit_layer(draft, f"{name}~", ends[0]), self._emit_layer(draft, f"{name}~~", ends[1]))
            key = self._emit(draft, name=name, op=Add(1), inputs=keys, shape=(P.shape[0],), radii={})
        self.places[i] = _Place(key, index)
        if behind is not None:
            every = _Layer(key, Exact.identity(P.shape[0], P.value), None)
            self.mirrored[self.readers[i][0]] = _Mirrored(every, behind, sign)
        return True

    @staticmethod
    def _is_tight(weight: Exact, P: Exact, L: Exact, V: Exact | None, mirrored: _Mirrored) -> bool:
        """Whether intervals get no wider by the path, over boxes around zero: there a ReLU takes half of the range of
        its neuron. `relu(z) - relu(-z)` and `max(a, b)` lose nothing; `|z| = 2 relu(z) - z` would."""
        reach = mirrored.layer.weight.row_sizes()
        before = weight.row_sizes(reach[mirrored.place] * mirrored.sign.abs())
        after = P.row_sizes(reach) + 2 * (L.row_sizes(reach) if V is None else V.row_sizes())
        return bool((after <= (1 + _WIDER) * before).all())

    @staticmethod
    def _path(L: Exact, head: _Layer, bias: Exact | None) -> tuple[Exact, Exact | None] | None:
        """`L z + bias` over the source of z: (weight, bias); None where that would round."""
        weight = L.times(head.weight)
        if weight is None or head.bias is None:
            return None if weight is None else (weight, bias)
        moved = L.times(head.bias)
        if moved is not None and bias is not None:
            moved = moved.plus(bias)
        return None if moved is None else (weight, moved)


def _equal(representative: Tensor, sign: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(rows that are kept, where each row is found among them) where only equal rows are one; (None, None): all."""
    kept, index = numbered(_first(3 * representative + sign.long()))
    return (kept, index) if len(kept) < len(sign) else (None, None)


def _is_uniform(op: Operator) -> bool:
    """Whether an elementwise operator treats all neurons alike."""
    return isinstance(op, Elementwise) and not any(
        isinstance(getattr(op, f.name), Tensor) for f in dataclasses.fields(op))
