"""What an operator must offer: operators know mathematics, methods know traversal.

Axis legend of this package: B domains, N flat rows, R rows of one domain, F features, *shape the
tensor without its batch axis.

Three kinds exist. `Affine` operators are pulled back exactly. `Elementwise` operators offer two
lines (`relax`). Everything else offers `interval` and linear bounds of its own (`Relaxed`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bounds.interval import Interval
from bounds.ops.least_area import least_area_point
from bounds.ops.round_off import SPARE, unit
from bounds.relaxation import Relaxation
from bounds.window import Extent, Owner

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """One operator of the graph. Subclasses are frozen dataclasses; tensor fields are parameters."""

    kind: ClassVar[str] = "operator"

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values: each input "B *in", the result "B *out"."""
        raise NotImplementedError(f"{self.kind} has no forward")

    def interval(self, *inputs: Interval) -> Interval:
        """An enclosure of `forward` over the product of the input intervals."""
        raise NotImplementedError(f"{self.kind} has no interval")

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """This operator with its floating-point tensors converted (indices move, keep their dtype)."""
        return self.map_tensors(
            lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def detach(self) -> Self:
        """This operator with tensors cut off from any module that shares them."""
        return self.map_tensors(lambda t: t.detach().clone() if isinstance(t, nn.Parameter) else t.detach())

    def map_tensors(self, function) -> Self:  # type: ignore[no-untyped-def]
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = function(value)
        return dataclasses.replace(self, **changes) if changes else self


class Affine(Operator):
    """`forward(x, ...) = linear(x, ...) + constant`, jointly linear in all inputs."""

    kind: ClassVar[str] = "affine"
    moves_only: ClassVar[bool] = False
    """True where `forward` computes nothing: numbers are moved, repeated or left out."""

    def linear(self, *inputs: Tensor) -> Tensor:
        """The linear part: `forward` without its constant. "B *in" -> "B *out"."""
        return self.forward(*inputs)

    def magnitude(self, *radii: Tensor) -> Tensor:
        """`|W| r`: the linear part with absolute weights; radii >= 0. Override unless W >= 0."""
        return self.linear(*radii)

    def absolute(self) -> Affine:
        """The operator whose linear part is `magnitude`. Override unless W >= 0."""
        return self

    def terms(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> int:
        """How many products (or differences) one entry of the result, or of a row pulled back, sums at most; 0 where
        numbers are only moved, so that nothing is rounded."""
        raise NotImplementedError(f"{self.kind} does not say how it rounds")

    def offset_size(self, input_shapes: tuple[Shape, ...]) -> Tensor | None:
        """"1 *out" (or broadcastable): the sizes of what makes up the constant; None where there is none."""
        return None

    def interval(self, *inputs: Interval) -> Interval:
        if self.moves_only:
            return Interval(self.forward(*(i.lower for i in inputs)), self.forward(*(i.upper for i in inputs)))
        centre = self.forward(*(i.centre for i in inputs))
        radius = self.magnitude(*(i.radius for i in inputs))
        return Interval(centre - radius, centre + radius)

    def pull_back(self, A: Tensor, input_shapes: tuple[Shape, ...]) -> tuple[Tensor, ...]:
        """The transpose: `<A, linear(x, ...)> = sum_i <result_i, x_i>`; "N *out" -> one "N *in" an input."""
        raise NotImplementedError(f"{self.kind} has no pull_back")

    def constant(self, A: Tensor) -> Tensor | None:
        """`<A, forward(0)>`: "N *out" -> "N", or None where the constant is zero. On windows ("N C h w",
        zero outside the map) it must give the same."""
        return None

    def pull_back_neuron(self, index: Tensor, sign: Tensor, output_shape: Shape) -> Tensor | None:
        """Rows `sign * y[index]` of single output neurons of a map ("N" flat indices into "C H W") as windows
        "N Cin h' w'" around them (the `window` of a 1 x 1 extent); None where there is no short cut."""
        return None

    def pull_back_phases(self, A: Tensor, extent: Extent) -> tuple[Tensor, Extent, int] | None:
        """As `pull_back_window` with the s * s phases of a strided result left apart as channels
        ("N Cin*s*s h' w'", the extent of the interleaved result, s); None where that is no gain."""
        return None

    def passes_rows(self, input_shapes: tuple[Shape, ...], output_shape: Shape) -> tuple[int, ...] | None:
        """Signs where rows pass unchanged (in flat order) to every input, as through a reshape, a sum or a
        difference of equal shapes; None otherwise."""
        return None

    def window(self, extent: Extent, input_shape: Shape) -> Extent | None:
        """Where windows of a 3-d output map at `extent` lie on the input map; None where the operator has no
        window form (rows are then made dense)."""
        return None

    def pull_back_window(self, A: Tensor) -> Tensor:
        """`pull_back` on windows, "N Cout h w" -> "N Cin h' w'", sized as `window` says; A is zero outside its map."""
        raise NotImplementedError(f"{self.kind} has no window form")


class Elementwise(Operator):
    """y_i = f(x_i) (parameters may differ between neurons); one input, same shape."""

    kind: ClassVar[str] = "elementwise"
    increasing: ClassVar[bool] = True
    rounding_known: ClassVar[bool] = False
    """True where `enclosed` and all lines (those of smooth operators once they went through `proved`) hold exactly as
    stored, without trust in a library's functions."""
    exact_ends: ClassVar[bool] = False
    """True where `interval` computes nothing that is rounded."""
    needs_proof: ClassVar[bool] = False
    """True where lines are computed from a library's functions, so that they are proposals until `proved` moved them.
    Searches whose answers carry no `rounded` evidence, training among them, take them as they are."""
    ulps: ClassVar[int] = 4
    """How many units in the last place of max(1, |y|) a runtime's y may be off by; 0: nothing is rounded."""
    only_kink: ClassVar[float | None] = None
    """Where f consists of two straight pieces, the point between them."""

    def interval(self, *inputs: Interval) -> Interval:
        (x,) = inputs
        if not self.increasing:
            raise NotImplementedError(f"{self.kind} is not increasing and has no interval of its own")
        return Interval(self.forward(x.lower), self.forward(x.upper))

    def enclosed(self, x: Interval) -> Interval:
        """As `interval`, rounding included."""
        found = self.interval(x)
        if self.exact_ends:
            return found
        spare = SPARE * unit(x.lower.dtype)
        return Interval(found.lower - spare * found.lower.abs(), found.upper + spare * found.upper.abs())

    def enclosed_with_gradient(self, x: Interval) -> Interval:
        """As `enclosed`, with the gradients of `interval` where that trusts a library."""
        if not self.needs_proof:
            return self.enclosed(x)
        with torch.no_grad():
            found = self.enclosed(x)
        if not (x.lower.requires_grad or x.upper.requires_grad):
            return found
        source = self.interval(x)
        return Interval(_with_gradient(found.lower, source.lower), _with_gradient(found.upper, source.upper))

    def derivative(self, x: Interval) -> Interval:
        """An enclosure, "B *shape", of all generalised derivatives of f at points of x (Clarke's: at a kink all between
        both sides' slopes, also where the kink is an end of x); rounding included. Infinite where f jumps."""
        from bounds.graph import UnsupportedOperator
        raise UnsupportedOperator(f"{self.kind}: no enclosure of its derivative")

    def known(self, x: Interval) -> tuple[Tensor, ...]:
        """What `intercepts` needs of intervals whatever the slopes, each broadcastable as x is."""
        return ()

    def intercepts(self, lower_slope: Tensor, upper_slope: Tensor, x: Interval, known: tuple[Tensor, ...]
                   ) -> tuple[Tensor, Tensor]:
        """(c, d), where `lower_slope z + c <= f(z) <= upper_slope z + d` over the reals for all z in x and any finite
        slopes, numbers as stored. known: `known(x)`; all broadcastable against "N *shape". Without gradients."""
        raise NotImplementedError(f"{self.kind} does not prove its lines")

    def proved(self, lines: Relaxation, x: Interval, known: tuple[Tensor, ...]) -> Relaxation:
        """The lines with proved intercepts in place of theirs, whose gradients they keep."""
        with torch.no_grad():
            low, high = self.intercepts(lines.lower_slope, lines.upper_slope, x, known)
        return Relaxation(lines.lower_slope, _with_gradient(low, lines.lower_intercept),
                          lines.upper_slope, _with_gradient(high, lines.upper_intercept))

    def relax(self, x: Interval) -> Relaxation:
        """The default two lines on [x.lower, x.upper] (adaptive: small area, CROWN's choice)."""
        raise NotImplementedError(f"{self.kind} has no relaxation")

    def relax_parallel(self, x: Interval) -> Relaxation:
        """Two lines of equal slope (Fast-Lin, zonotope): lower_slope is upper_slope."""
        raise NotImplementedError(f"{self.kind} has no parallel relaxation")

    def is_linear_on(self, x: Interval) -> Tensor:
        """bool "B *shape": true where f restricted to the interval is one line (nothing is lost,
        so tighter input bounds are not needed for the relaxation)."""
        return x.lower == x.upper

    def near(self, x: Interval, slope: Tensor, intercept: Tensor | None, room: Tensor) -> Interval | None:
        """Bounds of all z in x with `f(z) <= slope z + intercept + room`, given a line that lies below f on x and
        room >= 0 (infinite: no condition); all broadcastable against "B *shape". None: nothing is known."""
        return None

    def split_points(self, x: Interval, side: Tensor) -> Tensor:
        """Where a search should split each interval, "B *shape": strictly inside wherever a number lies strictly
        inside and f is not linear there. The only kink, or where the lines of both halves enclose the least area:
        the line below (side 1), above (-1) or both (0); side broadcasts against "B *shape"."""
        if self.only_kink is None:
            return least_area_point(self, x, side)
        kink = torch.full_like(x.lower, self.only_kink)
        return torch.where((x.lower < kink) & (kink < x.upper), kink, x.centre)

    # --- parameterised relaxation (alpha-CROWN); None where the operator has nothing to optimise

    def parameters(self, x: Interval) -> tuple[Tensor, Tensor, Tensor] | None:
        """(initial, low, high), each "K B *shape": K parameters a neuron, boxed to [low, high].
        With the initial values `relax_with` gives the lines of `relax`."""
        return None

    reuses_lines: ClassVar[bool] = False
    """True where the parameters replace lower_slope alone and the other lines are those of `relax`."""

    def select(self, read: Callable[[Tensor], Tensor], shape: Shape) -> Self:
        """The operator at chosen neurons: `read` maps values of `shape`, "B *shape", to the layout in which
        `relax_with` will be asked. Only operators whose parameters differ between neurons change."""
        return self

    def relax_with(self, x: Interval, params: Tensor) -> Relaxation:
        """Two valid lines for ANY `params` inside their box: "K N *shape", where N equals (or
        broadcasts against) the leading axis of x. Differentiable in params and in x."""
        raise NotImplementedError(f"{self.kind} has no parameterised relaxation")

    def relax_proved(self, x: Interval, params: Tensor, known: tuple[Tensor, ...]) -> Relaxation:
        """As `relax_with`, with lines that hold over the reals (see `proved`); differentiable in params."""
        return self.proved(self.relax_with(x, params), x, known)


def _with_gradient(value: Tensor, source: Tensor | None) -> Tensor:
    if source is None or not source.requires_grad:
        return value
    return value + (source - source.detach())  # the difference is zero: nothing but its gradient is left


class Relaxed(Operator):
    """A non-affine operator that is not elementwise (max-pool, product, softmax): it offers linear
    bounds of its outputs in its inputs and pulls rows back through them."""

    kind: ClassVar[str] = "relaxed"
    rounding_known: ClassVar[bool] = False
    """True where `rounding` bounds the errors of `pull_back_relaxed`, and `interval` holds in spite of rounding."""

    def rounding(self, inputs: tuple[Interval, ...], prices: tuple[Tensor | None, ...]) -> Tensor:
        """"B *out": by how much, per unit of a coefficient at each output, `pull_back_relaxed` may be off, where a unit
        of a coefficient at the inputs costs `prices` ("B *in"; None: nothing) in its turn."""
        raise NotImplementedError(f"{self.kind} does not say how it rounds")

    def pull_back_relaxed(self, A: Tensor, owner: Owner, inputs: tuple[Interval, ...]
                          ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Lower bound of <A, forward(x)>: "N *out" -> (one "N *in" an input, constant "N") with
        `<A, forward(x)> >= sum_i <result_i, x_i> + constant` for all x in the input intervals.
        `owner` maps a "B ..." tensor to rows: `owner.rows(t)` is "N ..." (or "1 ...", broadcastable)."""
        raise NotImplementedError(f"{self.kind} has no linear relaxation")

    def is_linear_on(self, *inputs: Interval) -> Tensor:
        """bool "B *in" for the first input: true where tighter input bounds would not help."""
        return inputs[0].lower == inputs[0].upper


@dataclasses.dataclass(frozen=True, eq=False)
class Input(Operator):
    """The network's input: the first node of every graph."""

    kind: ClassVar[str] = "Input"
