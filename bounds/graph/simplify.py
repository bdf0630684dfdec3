"""A frozen twin of a graph for search: fewer nodes, the same function up to recorded errors.

Rewrites, until none applies: batch normalisation and division become scalings; scalings move into the neighbouring
dense layer or convolution; chains of dense layers, reshapes, permutations and scalings become one; zero padding moves
into the convolution; equal and opposite neurons are kept once (`mirror`); what changes nothing goes. A layer is only
ever folded into a neighbour that nobody else reads.
Folds are computed in float64 with their errors (`Ball`) and rounded once to the graph's dtype; `Graph.fold_errors`
holds `|stored - exact|` for every parameter so made. A node keeps the name of the last source tensor it computes.

Left out on purpose: a shift in front of a padded convolution (the padding is not shifted), two dense layers whose
product is larger than both, anything across a branching.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from bounds.graph.ball import Ball
from bounds.graph.draft import Draft
from bounds.graph.graph import FoldError, Graph, Node
from bounds.graph.mirror import mirror
from bounds.ops.base import Operator, Shape
from bounds.ops.batch_norm import BatchNorm
from bounds.ops.conv import Conv
from bounds.ops.conv_transpose import ConvTranspose
from bounds.ops.divide import Divide
from bounds.ops.linear import Linear
from bounds.ops.matmul import MatMul
from bounds.ops.pad import Pad
from bounds.ops.reshape import Reshape
from bounds.ops.scale import Scale
from bounds.ops.transpose import Transpose

PRODUCT_WORK_LIMIT = 4_000_000_000  # multiplications spent on joining two dense layers: a second or so


def simplify(graph: Graph, *, merge: bool = True, fold: bool = True) -> Graph:
    """The simplified, detached graph: equal to `graph` up to `fold_errors` and rounding in evaluation. merge: equal and
    opposite neurons are kept once (else every neuron is the element of a tensor of the source). fold: parameters are
    computed; without it every number of the source is kept, and its operators but for those that only move numbers,
    and for sums that become biases."""
    dtype = graph.dtype
    # A module may be trained on, in place: its graph's twin has its own copies. Nobody writes to a file's tensors.
    from_module = graph.onnx_input_shape is None
    drafts = {i: Draft(n.name, n.op.map_tensors(lambda t: t.detach().clone() if from_module else t.detach()),
                        n.inputs, n.shape, _radii(n.op, graph.fold_errors.get(i))) for i, n in enumerate(graph.nodes)}
    if not fold:
        output = _rewritten(drafts, graph.output, dtype, _MOVE, {MatMul: _matmul_to_linear,
                                                                 Transpose: _transpose_to_reshape})
        return _finished(graph, drafts, output, dtype)
    output = _rewritten(drafts, graph.output, dtype, {pair: rule for pair, rule in _JOIN.items() if pair != _PRODUCT})
    # Equal and opposite neurons show in the parameters as stored, before products round them.
    if merge:
        drafts, output = mirror(drafts, output)
    output = _rewritten(drafts, output, dtype, _JOIN)
    return _finished(graph, drafts, output, dtype)


def _rewritten(drafts: dict[int, Draft], output: int, dtype: torch.dtype, joins: _Joins,
               alone: _Alone | None = None) -> int:
    """Apply the rules until none applies, in place; returns the output."""
    alone = _ALONE if alone is None else alone
    changed = True
    while changed:
        changed = False
        for i in list(drafts):
            if i == 0 or i not in drafts:
                continue
            source = _pass_through(drafts, i)
            if source is not None:
                output = _replace_by(drafts, i, source, output)
                changed = True
                continue
            # At one visit, so that a fresh scaling meets the layer before it rather than the reshape behind it.
            changed |= _rewrite_alone(drafts, i, dtype, alone)
            changed |= _join_with_source(drafts, i, output, dtype, joins)
    return output


# ---------------------------------------------------------------------- traversal


def _readers(drafts: dict[int, Draft], i: int) -> int:
    return sum(d.inputs.count(i) for d in drafts.values())


def _replace_by(drafts: dict[int, Draft], i: int, source: int, output: int) -> int:
    repeated = drafts.pop(i)
    if source and _readers(drafts, source) == 0:  # nobody else knows it by its own name
        drafts[source].name = repeated.name
    for draft in drafts.values():
        draft.inputs = tuple(source if j == i else j for j in draft.inputs)
    return source if output == i else output


def _rewrite_alone(drafts: dict[int, Draft], i: int, dtype: torch.dtype, rules: _Alone) -> bool:
    draft = drafts[i]
    rule = rules.get(type(draft.op))
    result = rule(draft, drafts[draft.inputs[0]].shape) if rule else None
    if result is None or not _representable(result, dtype):
        return False
    drafts[i] = result
    return True


def _join_with_source(drafts: dict[int, Draft], i: int, output: int, dtype: torch.dtype, joins: _Joins) -> bool:
    second = drafts[i]
    if len(second.inputs) != 1 or second.inputs[0] == 0:
        return False
    j = second.inputs[0]
    first = drafts[j]
    rule = joins.get((type(first.op), type(second.op)))
    if rule is None or j == output or _readers(drafts, j) != 1:
        return False
    result = rule(first, second)
    if result is None:
        return False
    if isinstance(result, tuple):  # the two change places
        front, back = result
        drafts[j], drafts[i] = front, dataclasses.replace(back, inputs=(j,))
        return True
    if not _representable(result, dtype):
        return False
    drafts[i] = dataclasses.replace(result, name=second.name, inputs=first.inputs, shape=second.shape)
    del drafts[j]
    return True


def _representable(draft: Draft, dtype: torch.dtype) -> bool:
    """Whether parameters and radii are finite in the graph's dtype: a fold that overflows is not made."""
    limit = torch.finfo(dtype).max
    values = [getattr(draft.op, name) for name in draft.radii] + list(draft.radii.values())
    return all(bool((v.abs() <= limit).all()) for v in values if v is not None)


def _finished(graph: Graph, drafts: dict[int, Draft], output: int, dtype: torch.dtype) -> Graph:
    needed = {0, output}
    for i in sorted(drafts, reverse=True):
        if i in needed:
            needed.update(drafts[i].inputs)
    place = {old: new for new, old in enumerate(sorted(needed))}
    nodes, errors = [], {}
    for old in sorted(needed):
        draft = drafts[old]
        rounded = {name: Ball(getattr(draft.op, name), radius).round(dtype) for name, radius in draft.radii.items()}
        op = dataclasses.replace(draft.op, **{name: ball.mid for name, ball in rounded.items()})
        radii = {_ROLE[name]: ball.radius for name, ball in rounded.items() if ball.radius is not None}
        if radii:
            errors[place[old]] = FoldError(**radii)
        nodes.append(Node(draft.name, op, tuple(place[j] for j in draft.inputs), draft.shape))
    return dataclasses.replace(graph, nodes=tuple(nodes), output=place[output], fold_errors=errors)


_ROLE = {"weight": "weight", "factor": "weight", "bias": "bias", "shift": "bias"}


def _radii(op: Operator, error: FoldError | None) -> dict[str, Tensor | None]:
    """The errors that an earlier simplification left."""
    if error is None:
        return {}
    names = [f.name for f in dataclasses.fields(op) if f.name in _ROLE]
    return {name: radius for name in names if (radius := getattr(error, _ROLE[name])) is not None}


# ---------------------------------------------------------------------- one node


def _pass_through(drafts: dict[int, Draft], i: int) -> int | None:
    """The node whose value node i repeats, if it does."""
    draft = drafts[i]
    if len(draft.inputs) != 1:
        return None
    (source,) = draft.inputs
    op, shape = draft.op, drafts[source].shape
    if isinstance(op, Reshape) and op.shape == shape:
        return source
    if isinstance(op, Scale) and not draft.radii:
        unit = op.factor is None or bool((op.factor == 1).all())
        if unit and (op.shift is None or not bool(op.shift.any())):
            return source
    return None


def _batch_norm_to_scale(draft: Draft, shape: Shape) -> Draft:
    op = draft.op
    assert isinstance(op, BatchNorm), "the table pairs types with rules"
    if op.training:
        raise ValueError(f"batch normalisation {draft.name!r} is in training mode: only fixed statistics can be folded")
    eps = Ball(torch.tensor(op.eps, dtype=torch.float64, device=op.mean.device))
    factor = _one_like(op.variance) / (Ball(op.variance) + eps).sqrt()
    if op.weight is not None:
        factor = Ball(op.weight) * factor
    shift = -(Ball(op.mean) * factor)
    if op.bias is not None:
        shift = shift + Ball(op.bias)
    as_channels = (-1, *(1,) * (len(shape) - 1))
    return draft.with_op(Scale(), factor=factor.map(lambda t: t.reshape(as_channels)),
                         shift=shift.map(lambda t: t.reshape(as_channels)))


def _divide_to_scale(draft: Draft, shape: Shape) -> Draft:
    assert isinstance(draft.op, Divide), "the table pairs types with rules"
    return draft.with_op(Scale(), factor=_one_like(draft.op.divisor) / Ball(draft.op.divisor))


def _one_like(t: Tensor) -> Ball:
    return Ball(torch.ones((), dtype=torch.float64, device=t.device))


def _matmul_to_linear(draft: Draft, shape: Shape) -> Draft | None:
    op = draft.op
    assert isinstance(op, MatMul), "the table pairs types with rules"
    return None if op.left or op.weight.dim() != 2 else draft.with_op(Linear(op.weight.t()))


def _transpose_to_reshape(draft: Draft, shape: Shape) -> Draft | None:
    """A permutation that only moves axes of size one keeps the order of the entries."""
    op = draft.op
    assert isinstance(op, Transpose), "the table pairs types with rules"
    moved = [p for p in op.perm if shape[p] > 1]
    return draft.with_op(Reshape(draft.shape)) if moved == sorted(moved) else None


_Alone = dict[type[Operator], Callable[[Draft, Shape], "Draft | None"]]
_ALONE: _Alone = {
    BatchNorm: _batch_norm_to_scale,
    Divide: _divide_to_scale,
    MatMul: _matmul_to_linear,
    Transpose: _transpose_to_reshape,
}


# ---------------------------------------------------------------------- two nodes


def _reshape_reshape(first: Draft, second: Draft) -> Draft:
    return second


def _transpose_transpose(first: Draft, second: Draft) -> Draft:
    assert isinstance(first.op, Transpose) and isinstance(second.op, Transpose), "the table pairs types with rules"
    inner = first.op.perm
    return second.with_op(Transpose(tuple(inner[p] for p in second.op.perm)))


def _scale_scale(first: Draft, second: Draft) -> Draft:
    outer = second.ball("factor")
    return second.with_op(Scale(), factor=_product(first.ball("factor"), outer),
                          shift=_sum(_product(first.ball("shift"), outer, missing=None), second.ball("shift")))


def _product(a: Ball | None, b: Ball | None, missing: object = "one") -> Ball | None:
    """a * b; an absent b is one, an absent a is one or (with `missing=None`) zero."""
    if a is None:
        return b if missing == "one" else None
    return a if b is None else a * b


def _sum(a: Ball | None, b: Ball | None) -> Ball | None:
    return b if a is None else a if b is None else a + b


def _scale_reshape(first: Draft, second: Draft) -> tuple[Draft, Draft]:
    """Reshape first, so that the scaling can meet the layer behind."""
    def through(ball: Ball | None) -> Ball | None:
        if ball is None or ball.mid.numel() == 1:
            return None if ball is None else ball.map(lambda t: t.reshape(()))
        return ball.map(lambda t: t.expand(first.shape).reshape(second.shape))

    front = Draft(f"{second.name}~", second.op, first.inputs, second.shape)
    return front, second.with_op(Scale(), factor=through(first.ball("factor")), shift=through(first.ball("shift")))


def _along(ball: Ball | None, axis: int, size: int, rank: int) -> Ball | None:
    """A factor or shift that varies along one axis only, as a vector; raises _NoFold if it varies along others."""
    if ball is None:
        return None
    shape = (1,) * (rank - ball.mid.dim()) + tuple(ball.mid.shape)
    if any(n != 1 for i, n in enumerate(shape) if i != axis):
        raise _NoFold
    return ball.map(lambda t: t.reshape(-1).expand(size))


class _NoFold(Exception):
    """A rule finds that it does not apply."""


_Rule = Callable[[Draft, Draft], "Draft | tuple[Draft, Draft] | None"]
_Joins = dict[tuple[type[Operator], type[Operator]], _Rule]


def _unless_no_fold(rule: Callable[[Draft, Draft], Draft]) -> _Rule:
    def attempt(first: Draft, second: Draft) -> Draft | None:
        try:
            return rule(first, second)
        except _NoFold:
            return None
    return attempt


def _layer_scale(first: Draft, second: Draft) -> Draft:
    """The scaling of a layer's outputs moves into its weight and bias."""
    op, weight = first.op, first.ball("weight")
    assert isinstance(op, (Linear, Conv, ConvTranspose)) and weight is not None, "the table pairs types with rules"
    axis = len(second.shape) - 1 if isinstance(op, Linear) else 0
    size, rank = second.shape[axis], len(second.shape)
    factor = _along(second.ball("factor"), axis, size, rank)
    shift = _along(second.ball("shift"), axis, size, rank)
    if factor is not None:
        weight = weight * factor.map(lambda t: _on_outputs(op, t))
    return first.with_op(op, weight=weight, bias=_sum(_product(first.ball("bias"), factor, missing=None), shift))


def _layer_shift(first: Draft, second: Draft) -> Draft:
    """What is added to a layer without a bias is its bias: nothing is computed."""
    assert isinstance(second.op, Scale), "the table pairs types with rules"
    if first.ball("bias") is not None or second.op.factor is not None:
        raise _NoFold
    return _layer_scale(first, second)


def _on_outputs(op: Linear | Conv | ConvTranspose, v: Tensor) -> Tensor:
    """A vector over output channels, shaped to multiply the weight."""
    rest = (1,) * (op.weight.dim() - 2)
    if not isinstance(op, ConvTranspose):
        return v.reshape(-1, 1, *rest)
    inputs, outputs = op.weight.shape[:2]
    return v.reshape(op.groups, 1, outputs).expand(-1, inputs // op.groups, -1).reshape(inputs, outputs, *rest)


def _on_inputs(op: Linear | Conv | ConvTranspose, v: Tensor) -> Tensor:
    """A vector over input channels, shaped to multiply the weight."""
    rest = (1,) * (op.weight.dim() - 2)
    if isinstance(op, Linear):
        return v.reshape(1, -1)
    if isinstance(op, ConvTranspose):
        return v.reshape(-1, 1, *rest)
    outputs, inputs = op.weight.shape[:2]
    return v.reshape(op.groups, 1, inputs).expand(-1, outputs // op.groups, -1).reshape(outputs, inputs, *rest)


def _scale_layer(first: Draft, second: Draft) -> Draft:
    """The scaling of a layer's inputs moves into its weight and bias."""
    op, weight, bias = second.op, second.ball("weight"), second.ball("bias")
    assert isinstance(op, (Linear, Conv, ConvTranspose)) and weight is not None, "the table pairs types with rules"
    axis = len(first.shape) - 1 if isinstance(op, Linear) else 0
    size, rank = first.shape[axis], len(first.shape)
    factor = _along(first.ball("factor"), axis, size, rank)
    shift = _along(first.ball("shift"), axis, size, rank)
    if shift is not None:
        # Zero padding is not shifted, and neither are the cells that a transposed convolution leaves out.
        if isinstance(op, ConvTranspose) or (isinstance(op, Conv) and any(op.padding)):
            raise _NoFold
        cells = math.prod(op.weight.shape[2:])
        moved = shift.map(lambda t: _on_inputs(op, t).expand_as(op.weight).reshape(op.weight.shape[0], -1))
        if isinstance(op, Linear):
            moved_bias = (weight @ shift.map(lambda t: t.unsqueeze(1))).map(lambda t: t.squeeze(1))
        else:
            flat = weight.map(lambda t: t.reshape(t.shape[0], -1))
            moved_bias = _row_sums(flat * moved, cells * op.weight.shape[1])
        bias = _sum(moved_bias, bias)
    if factor is not None:
        weight = weight * factor.map(lambda t: _on_inputs(op, t))
    return second.with_op(op, weight=weight, bias=bias)


def _row_sums(ball: Ball, terms: int) -> Ball:
    ones = torch.ones(terms, 1, dtype=torch.float64, device=ball.mid.device)
    return (ball @ Ball(ones)).map(lambda t: t.squeeze(1))


def _linear_linear(first: Draft, second: Draft) -> Draft | None:
    inner, outer = first.ball("weight"), second.ball("weight")
    assert inner is not None and outer is not None, "dense layers have weights"
    outputs, middle = outer.mid.shape
    inputs = inner.mid.shape[1]
    if outputs * inputs > outer.mid.numel() + inner.mid.numel() or outputs * middle * inputs > PRODUCT_WORK_LIMIT:
        return None
    inner_bias = first.ball("bias")
    bias = second.ball("bias")
    if inner_bias is not None:
        bias = _sum((outer @ inner_bias.map(lambda t: t.unsqueeze(1))).map(lambda t: t.squeeze(1)), bias)
    return second.with_op(second.op, weight=outer @ inner, bias=bias)


def _pad_conv(first: Draft, second: Draft) -> Draft | None:
    assert isinstance(first.op, Pad) and isinstance(second.op, Conv), "the table pairs types with rules"
    channels, *pads = first.op.pads
    if first.op.value != 0 or channels != (0, 0) or any(before != after or before < 0 for before, after in pads):
        return None
    padding = tuple(p + before for p, (before, _) in zip(second.op.padding, pads, strict=True))
    return second.with_op(dataclasses.replace(second.op, padding=padding),
                          weight=second.ball("weight"), bias=second.ball("bias"))


_PRODUCT = (Linear, Linear)

_JOIN: _Joins = {
    (Reshape, Reshape): _reshape_reshape,
    (Transpose, Transpose): _transpose_transpose,
    (Scale, Scale): _scale_scale,
    (Scale, Reshape): _scale_reshape,
    _PRODUCT: _linear_linear,
    (Pad, Conv): _pad_conv,
    **{(layer, Scale): _unless_no_fold(_layer_scale) for layer in (Linear, Conv, ConvTranspose)},
    **{(Scale, layer): _unless_no_fold(_scale_layer) for layer in (Linear, Conv, ConvTranspose)},
}

# Those that compute no parameter.
_MOVE: _Joins = {
    **{pair: _JOIN[pair] for pair in ((Reshape, Reshape), (Transpose, Transpose), (Scale, Reshape), (Pad, Conv))},
    **{(layer, Scale): _unless_no_fold(_layer_shift) for layer in (Linear, Conv, ConvTranspose)},
}
