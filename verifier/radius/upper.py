"""Upper ends of safe radii: the nearest unsafe points that attacks find, for many inputs at once, each one confirmed.

Minimum-norm attacks run one after the other; each example keeps its nearest candidate, and walks along the boundary
begin there. In float64 the candidate is then polished: the boundary is linearised where the candidate is, the input is
projected onto it inside the box, exactly in the norm, and a secant along the ray brings the margin to just below zero.
Where that ends on one piece of a piecewise linear network it is that piece's nearest point. At last the point is
rounded to float32, and by small nudges moves outward until `verifier.witness.confirm` accepts it.

The distance is that of the witness itself, and the witness lies strictly inside the clip range and differs on free
features only: `r_max <= distance` over the reals where an enclosure confirms the point (evidence ROUNDED), else as far
as float32 evaluation goes (FLOAT).

Axis legend: N inputs, m classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bounds.graph import Graph
from bounds.sets import round_down as floor_to
from bounds.sets import round_up as ceil_to
from verifier.attacks.criterion import Criterion, Misclassified, Outranked
from verifier.attacks.hyperplane import least_move
from verifier.attacks.model import Model, as_model
from verifier.attacks.registry import attack_named
from verifier.attacks.run import BATCH_ENTRIES
from verifier.attacks.threat import Threat
from verifier.deadline import Deadline
from verifier.exact import fraction, round_down, round_up
from verifier.logits import logits_of
from verifier.network import Network
from verifier.property import robustness
from verifier.radius.balls import Balls
from verifier.real_value import real_agrees
from verifier.verdict import Evidence
from verifier.witness import Replayer, Witness, confirm

Attacks = Sequence[tuple[str, Mapping[str, Any]]]  # names and settings, in the order they run
Progress = Callable[[int, int], None]              # (attacks done, of)

CHEAP: Attacks = (("fmn", {"steps": 50}), ("fab-t", {"steps": 20, "classes": 5}))
THOROUGH: Attacks = (("fmn", {"steps": 500}), ("fab-t", {"steps": 50}), ("bb", {"steps": 100}))

PROJECTIONS = 20              # of the polish, at most
SHARES = (1.0, 0.3, 0.1)      # of the way to the projection that it tries
BEYOND = (1e-6, 1e-4)         # of the way to a point, by which a ray goes on to become unsafe
FURTHER = 1e-2                # the most of it
SECANTS = 40                  # evaluations along a ray, at most; some 4 to 8 are needed
CLOSE = 1e-12                 # of the distance, where they end
LEAST = 1e-3                  # of a bracket that each gives up
TINY = 1e-300                 # below any distance
GAIN = 1e-9                   # of the distance: a projection that brings less was the last
NUDGES = (0.0, 1e-7, 2e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # of the distance, outward


class Nearest(NamedTuple):
    """A confirmed unsafe point, how far it is (float64, rounded up), and what found it: "input", an attack's name, or
    nothing (None, inf, "")."""

    witness: Witness | None
    distance: float
    by: str

    @property
    def evidence(self) -> Evidence:
        """Of the distance as an upper end over the reals."""
        return Evidence.ROUNDED if self.witness is not None and self.witness.real_agrees else Evidence.FLOAT


NOTHING = Nearest(None, math.inf, "")


def nearest_witnesses(network: Network | tuple[Graph, Graph, Replayer], balls: Balls, *, attacks: Attacks | None = None,
                      deadline: Deadline | None = None, seed: int = 0, device: torch.device | str | None = None,
                      ids: Tensor | None = None, progress: Progress | None = None) -> list[Nearest]:
    """The nearest confirmed unsafe point of every input that attacks find.

    network: read, or (graph, simplified, what replays the original). attacks: as `CHEAP` (the default) and
    `THOROUGH`. An input that is unsafe itself is its own witness, 0 away. When the deadline passes attacks stop with
    what they have, which is still confirmed. Raises ValueError where inputs or labels do not fit the network.
    """
    parts = (network.graph, network.simplified, network.replayer) if isinstance(network, Network) else network
    asked = Asked.of(*parts, balls, device)
    deadline = deadline or Deadline.starting_now()
    sequence = CHEAP if attacks is None else attacks
    everyone = torch.arange(len(balls), device=asked.x.device)
    unsafe = (asked.margin(asked.x, everyone) <= 0).tolist()
    # What the gate does not accept as unsafe is attacked.
    found = [asked.confirmed(k, asked.x[k], "input") if unsafe[k] else NOTHING for k in range(len(balls))]
    i = everyone[[nearest.witness is None for nearest in found]]
    points, best, by = asked.x[i], torch.full((len(i),), math.inf, dtype=torch.float64, device=i.device), [""] * len(i)
    for done, (name, settings) in enumerate(sequence):
        if progress is not None:
            progress(done, len(sequence))
        if not i.numel() or deadline.passed():
            break
        tried, success = asked.attack(name, settings, i, points, seed, i if ids is None else ids.to(i)[i], deadline)
        at = (success & (asked.distance(tried, i) < best)).nonzero().flatten()
        tried, far = asked.polished(tried[at], i[at], deadline)
        nearer = far < best[at]
        points[at[nearer]], best[at[nearer]] = tried[nearer], far[nearer]
        by = [name if k in set(at[nearer].tolist()) else before for k, before in enumerate(by)]
    for k in torch.isfinite(best).nonzero().flatten().tolist():
        found[int(i[k])] = asked.confirmed(int(i[k]), points[k], by[k])
    return found


@dataclass(frozen=True, eq=False)
class Asked:
    """The inputs "N *shape" in float64, the box in which unsafe points count, and the networks that judge them.

    low, high: the clip range of free features (infinite without one), and the input where features are fixed; low32,
    high32: the float32 inside it, exactly. attacked: the network as attacks see it; real: the same in float64.
    """

    balls: Balls
    x: Tensor
    low: Tensor
    high: Tensor
    low32: Tensor
    high32: Tensor
    attacked: Graph
    real: Graph
    judge: Model
    replayer: Replayer
    criterion: Criterion
    classes: int

    @classmethod
    def of(cls, graph: Graph, simplified: Graph, replayer: Replayer, balls: Balls, device: torch.device | str | None
           ) -> Asked:
        classes = math.prod(graph.output_shape)
        if balls.shape != graph.input_shape:
            raise ValueError(f"the network's inputs have shape {graph.input_shape}, got {balls.shape}")
        named = balls.label.tolist() + ([] if balls.target is None else [balls.target])
        if classes < 2 or any(not 0 <= c < classes for c in named):
            raise ValueError(f"labels and target must be classes of the network, which has {classes}, got {named[:10]}")
        attacked = simplified if device is None else simplified.to(device=device)
        real = dataclasses.replace((logits_of(attacked) or attacked).to(dtype=torch.float64), arithmetic=None)
        x, free, label = (t.to(attacked.device) for t in (balls.x, balls.free, balls.label))
        low, high = (-math.inf, math.inf) if balls.clip is None else (
            round_up(fraction(float(balls.clip[0]))), round_down(fraction(float(balls.clip[1]))))
        lower, upper = torch.where(free, low, x), torch.where(free, high, x)
        goal = Misclassified(label) if balls.target is None else Outranked(label, torch.full_like(label, balls.target))
        # In the input's own place even where it is no decimal of the range.
        return cls(balls, x, torch.minimum(lower, x), torch.maximum(upper, x), ceil_to(lower, torch.float32),
                   floor_to(upper, torch.float32), attacked, real, as_model(real), replayer, goal, classes)

    def attack(self, name: str, settings: Mapping[str, Any], i: Tensor, points: Tensor, seed: int, ids: Tensor,
               deadline: Deadline) -> tuple[Tensor, Tensor]:
        """(points "P *shape" in float64, success "P") of an attack on inputs `i` "P" with the numbers `ids` "P",
        starting at `points`."""
        mask, dtype = self.balls.mask, self.attacked.dtype
        threat = Threat(self.balls.norm, math.inf, self.balls.clip, None if mask is None else mask.to(self.x.device))
        result = attack_named(name, **settings).run(
            self.attacked, self.x[i].to(dtype), self.criterion.index(i), threat, seed=seed, ids=ids, deadline=deadline,
            starts=points.to(dtype))
        return result.x.double(), result.success

    def margin(self, x: Tensor, i: Tensor) -> Tensor:
        """How far points "P *shape" of inputs `i` "P" are from unsafe, in float64: "P"."""
        size = max(1, BATCH_ENTRIES // max(1, self.judge.entries))
        with torch.no_grad():
            parts = [self.criterion.margin(self.judge(p), p, k)
                     for p, k in zip(x.split(size), i.split(size), strict=True)]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def slope(self, x: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        """(the margin "P", its gradient "P F" in the flat features)."""
        size = max(1, BATCH_ENTRIES // max(1, 2 * self.judge.entries))
        values, slopes = [], []
        for p, k in zip(x.split(size), i.split(size), strict=True):
            with torch.enable_grad():
                leaf = p.detach().requires_grad_()
                value = self.criterion.margin(self.judge(leaf), leaf, k)
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach())
            slopes.append(torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0).flatten(1))
        return torch.cat(values), torch.cat(slopes)

    def distance(self, x: Tensor, i: Tensor) -> Tensor:
        """Of points "P *shape" from inputs `i` "P", rounded up: "P"."""
        return self.balls.take(i.to(self.balls.x.device)).distance(x).to(self.x.device)

    def along(self, x: Tensor, i: Tensor, s: Tensor) -> Tensor:
        """The points at `s` "P" of the ways from inputs `i` to x "P *shape" (1: x itself), moved into the box."""
        origin = self.x[i]
        return (origin + s.view(-1, *(1,) * (x.dim() - 1)) * (x - origin)).clamp(self.low[i], self.high[i])

    def polished(self, x: Tensor, i: Tensor, deadline: Deadline) -> tuple[Tensor, Tensor]:
        """(points "P *shape" nearer to inputs `i` "P" than the candidates x, distances "P"): unsafe in float64, else
        infinitely far."""
        best, far = self.to_boundary(x, i, torch.full((len(i),), 1 + FURTHER, dtype=torch.float64, device=x.device))
        best = torch.where(_each(torch.isfinite(far), x), best, x)
        on = torch.arange(len(i), device=x.device)
        for _ in range(PROJECTIONS):
            if not on.numel() or deadline.passed():
                break
            k, before = i[on], far[on]
            value, slope = self.slope(best[on], k)
            origin = self.x[k].flatten(1)
            need = (slope * (best[on].flatten(1) - origin)).sum(1) - value
            foot = origin + least_move(slope, need, self.low[k].flatten(1) - origin, self.high[k].flatten(1) - origin,
                                       self.balls.norm)
            foot = foot.view_as(best[on])
            for share in SHARES:
                tried = torch.lerp(best[on], foot, share)
                length = self.distance(tried, k)
                most = torch.where(torch.isfinite(far[on]), far[on] / length.clamp(min=TINY), 1 + FURTHER)
                reached, reach = self.to_boundary(tried, k, most)
                nearer = reach < far[on]
                best[on[nearer]], far[on[nearer]] = reached[nearer], reach[nearer]
            lost = torch.isinf(far[on])
            best[on[lost]] = foot[lost]
            on = on[lost | (far[on] < (1 - GAIN) * before)]
        return best, far

    def to_boundary(self, x: Tensor, i: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """(points "P *shape", distances "P") where the ways from inputs `i` through x become unsafe, at no more than
        `most` "P" of them; infinitely far where x and points a little beyond it are safe."""
        safe, unsafe = torch.zeros_like(most), torch.full_like(most, math.inf)
        at_safe, at_unsafe = self.margin(self.x[i], i), torch.zeros_like(most)
        for beyond in (0.0, *BEYOND, math.inf):
            s = most.clamp(max=1 + beyond)
            k = (torch.isinf(unsafe) & (s > safe)).nonzero().flatten()
            if not k.numel():
                continue
            margin = self.margin(self.along(x[k], i[k], s[k]), i[k])
            below = margin <= 0
            unsafe[k[below]], at_unsafe[k[below]] = s[k[below]], margin[below]
            safe[k[~below]], at_safe[k[~below]] = s[k[~below]], margin[~below]
        k = torch.isfinite(unsafe).nonzero().flatten()
        bracket = Bracket(safe[k], at_safe[k], unsafe[k], at_unsafe[k])
        unsafe[k] = bracket.root(lambda s, on: self.margin(self.along(x[k[on]], i[k[on]], s), i[k[on]]))
        points = self.along(x, i, torch.where(torch.isfinite(unsafe), unsafe, 1.0))
        return points, torch.where(torch.isfinite(unsafe), self.distance(points, i), math.inf)

    def confirmed(self, k: int, x: Tensor, by: str) -> Nearest:
        """The first of x "*shape" and points ever further out that the gate accepts as a witness for input k."""
        shares = 1 + torch.tensor(NUDGES, dtype=torch.float64, device=self.x.device)
        i = torch.full((len(shares),), k, device=self.x.device)
        single = self.along(x.expand(len(shares), *x.shape), i, shares).float()
        single = single.maximum(self.low32[k]).minimum(self.high32[k])
        inside = ((single >= self.low32[k]) & (single <= self.high32[k])).flatten(1).all(1)
        usable = inside & (self.margin(single.double(), i) <= 0)
        reach = float((single.double() - self.x[k]).abs().max())
        prop = robustness(self.x[k].cpu().numpy(), int(self.balls.label[k]), _power_of_two(reach), classes=self.classes,
                          clip=self.balls.clip, target=self.balls.target,
                          mask=None if self.balls.mask is None else self.balls.mask.cpu().numpy())
        for candidate in torch.unique_consecutive(single[usable], dim=0):
            witness = confirm(candidate, prop, self.replayer,
                              real_check=lambda point, branch: real_agrees(self.real, prop, point, branch))
            if witness is not None and witness.real_agrees is not False:
                there = torch.from_numpy(witness.x).unsqueeze(0)
                return Nearest(witness, float(self.distance(there, i[:1])), by)
        return NOTHING


@dataclass(frozen=True, eq=False)
class Bracket:
    """Places "P" where a function is positive, and places where it is not, with its values there."""

    safe: Tensor
    at_safe: Tensor
    unsafe: Tensor
    at_unsafe: Tensor

    def root(self, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Places "P" where it is not positive, next to where it is: a secant in brackets (the Illinois rule).

        value(s "Q", chosen "Q"): of some of the P.
        """
        a, at_a, b, at_b = (t.clone() for t in (self.safe, self.at_safe, self.unsafe, self.at_unsafe))
        before = torch.zeros_like(a, dtype=torch.bool)  # whether the last place was unsafe
        for _ in range(SECANTS):
            on = ((at_b < 0) & (b - a > CLOSE * b)).nonzero().flatten()
            if not on.numel():
                break
            share = at_a[on] / (at_a[on] - at_b[on])
            s = a[on] + (b[on] - a[on]) * share.clamp(LEAST, 1 - LEAST)
            found = value(s, on)
            below = found <= 0
            again = below == before[on]
            # An end that stays twice counts half, so that it moves as well.
            at_a[on[below & again]] /= 2
            at_b[on[~below & again]] /= 2
            b[on[below]], at_b[on[below]] = s[below], found[below]
            a[on[~below]], at_a[on[~below]] = s[~below], found[~below]
            before[on] = below
        return b


def _each(t: Tensor, x: Tensor) -> Tensor:
    """"P" as "P 1 .. 1", to go with points x."""
    return t.view(-1, *(1,) * (x.dim() - 1))


def _power_of_two(reach: float) -> float:
    """The next one, whose rationals are short; zero of zero."""
    return 2.0 ** math.ceil(math.log2(reach)) if reach > 0 else 0.0
