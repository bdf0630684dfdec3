"""What descent costs without gradients, how it leaves saddle points, and what it does in games.

    python benchmarks/studies/zeroth_order.py [--mode quick|default|paper]

A lecture on attacks and certified defence states three things about descent: with gradients an eps-stationary point
(||grad f||^2 <= eps) is reached in O(1/eps) steps, without them in O(d / eps), and near saddle points it is slow unless
it is perturbed. They are measured on smooth functions whose smoothness, range and gradient descent do not depend on the
dimension, f(x) = mean_i psi(sqrt(d) x_i): `tail`, on which even gradient descent needs nearly 1/eps steps, and `well`.
Estimates are those of `verifier.attacks`: Gaussian smoothing with one direction a step, NES (pairs, momentum), ZOO
(a coordinate a step, plain or with its Adam). Steps are 1/L over what the estimate's second moment exceeds
||grad f||^2 by, from the inequality that proves the gradient's own rate; Adam's are a share of the coordinates' scale.

The games are min over x, max over y of x'Ay: descent-ascent at the same time (diverges), optimistic (converges,
Daskalakis et al. 2018, arXiv:1711.00141) and in turns (cycles, Zhang and Yu 2020, arXiv:1908.05699).

The lecture has no experiments: the mode `paper` is the default with more of everything.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import markdown  # noqa: E402
from benchmarks.studies.claims import (  # noqa: E402
    AGAINST,
    HOLDS,
    OPEN,
    SILENT,
    plain,
    stands,
    together,
    verdict,
)
from benchmarks.studies.fits import Interval, exponents, interval, share, told  # noqa: E402
from benchmarks.studies.study import (  # noqa: E402
    Context,
    Drawing,
    Numbers,
    Settings,
    Study,
    Verdict,
    counts,
    positive,
    required,
    run,
)
from verifier.attacks.draws import Draws  # noqa: E402
from verifier.attacks.estimate import coordinate_slopes, slope_of  # noqa: E402
from verifier.attacks.gradient_free import Ascent, Nes  # noqa: E402
from verifier.attacks.zoo import CoordinateAdam  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXACT = torch.float64
SLACK = 0.1          # by which a fitted exponent may exceed the claimed one: a tenth of a power
TAIL = 0.1           # the power with which `tail` falls: the smaller, the nearer its exponent is to 1
ADAM_STEP = 0.1      # of a coordinate's scale
CHECK = 16           # steps between looks at whether all runs have arrived
TURNS = 8 * math.pi  # game_rate * game_steps from which each half holds a whole turn of singular values from 0.5

METHODS = {"gd": "gradient descent", "forward": "Gaussian smoothing, forward", "central": "Gaussian smoothing, central",
           "nes": "NES", "zoo": "ZOO, plain steps", "zoo-adam": "ZOO, Adam"}
COLOURS = dict(zip(METHODS, ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7"), strict=True))
MARKS = dict(zip(METHODS, "osD^vP", strict=True))
GAMES = {"simultaneous": "at the same time", "optimistic": "optimistic", "alternating": "in turns"}
Powers = dict[tuple[str, str], Interval | None]  # exponents by profile and method
GAME_COLOURS = dict(zip(GAMES, ("#D55E00", "#009E73", "#0072B2"), strict=True))


# ---------------------------------------------------------------------- problems without noise

@dataclass(frozen=True)
class Profile:
    """psi, psi' and an interval of |z| where coordinates start; 1-smooth, with infimum 0."""

    words: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    start: tuple[float, float]


PROFILES = {
    "tail": Profile(f"psi(z) = 10 (1 + z^2)^-{TAIL / 2:g}", lambda z: (1 + z * z) ** (-TAIL / 2) / TAIL,
                    lambda z: -z * (1 + z * z) ** (-TAIL / 2 - 1), (0.5, 1.5)),
    "well": Profile("psi(z) = z^2 / (2 + 2 z^2)", lambda z: z * z / (2 + 2 * z * z),
                    lambda z: z / (1 + z * z) ** 2, (0.7, 1.5)),
}


@dataclass(frozen=True)
class Problem:
    """f(x) = mean_i psi(sqrt(d) x_i): smoothness 1 and infimum 0 in every dimension."""

    profile: str
    d: int

    def value(self, x: Tensor) -> Tensor:
        return PROFILES[self.profile].value(self.d**0.5 * x).mean(-1)

    def slope(self, x: Tensor) -> Tensor:
        return PROFILES[self.profile].slope(self.d**0.5 * x) / self.d**0.5

    def starts(self, draws: Draws, owner: Tensor) -> Tensor:
        """"S d"."""
        low, high = PROFILES[self.profile].start
        size = low + (high - low) * draws.uniform(owner, (self.d,), EXACT)
        return size * draws.sign(owner, (self.d,), EXACT) / self.d**0.5


def descent(method: str, problem: Problem, draws: Draws, owner: Tensor, *, width: float, pairs: int,
            ) -> Callable[[Tensor], Tensor]:
    """The map from points "S d" to the next ones."""
    d, widths = problem.d, torch.full(owner.shape, width, dtype=EXACT)
    if method == "gd":
        return lambda x: x - problem.slope(x)
    if method in ("forward", "central", "nes"):
        count = pairs if method == "nes" else 1
        memory = Ascent(Nes().momentum if method == "nes" else 0.0, share=1.0)
        step = 1 / (1 + (d + 1) / count)  # E ||estimate||^2 = (1 + (d + 1) / count) ||grad f||^2

        def smoothed(x: Tensor) -> Tensor:
            u = draws.normal(owner, (count, d), EXACT)
            value = problem.value(x) if method == "forward" else None
            return x - step * memory.averaged(slope_of(problem.value, x, u, widths, value))
        return smoothed
    adam = CoordinateAdam(torch.zeros(len(owner), d, dtype=EXACT))

    def by_coordinates(x: Tensor) -> Tensor:
        at = draws.integers(owner, (1,), d)
        found = coordinate_slopes(lambda points: (problem.value(points), points), x, at, width)
        slope = torch.zeros_like(x).scatter(1, at, found)
        if method == "zoo":
            return x - slope
        touched = torch.zeros_like(x, dtype=torch.bool).scatter(1, at, True)
        return x + ADAM_STEP / d**0.5 * adam.step(slope, touched)
    return by_coordinates


def arrivals(method: str, problem: Problem, levels: Sequence[float], seeds: int, *, width: float, pairs: int,
             limit: int) -> list[list[int | None]]:
    """For each seed and each level eps the first step after which ||grad f||^2 <= eps; None: not within the limit."""
    owner = torch.arange(seeds)
    draws = Draws(problem.d, owner)
    x = problem.starts(draws, owner)
    onward = descent(method, problem, draws, owner, width=width, pairs=pairs)
    bar = torch.tensor(levels, dtype=EXACT)
    first = torch.full((seeds, len(levels)), limit + 1)
    for t in range(limit + 1):
        met = problem.slope(x).square().sum(1, keepdim=True) <= bar
        first = torch.where(met, first.clamp(max=t), first)
        if t % CHECK == 0 and bool((first <= t).all()):
            break
        x = onward(x)
    return [[t if t <= limit else None for t in row] for row in first.tolist()]


def complexity(settings: Settings, context: Context) -> list[dict[str, Any]]:
    """Rows of (profile, method, what varies): steps by seed and place."""
    rows = []
    how = {key: settings[key] for key in ("width", "pairs", "limit")}
    for profile in PROFILES:
        for method in METHODS:
            context.tell(f"{profile}: {METHODS[method]}")
            one = Problem(profile, settings["dimension"])
            rows.append({"profile": profile, "method": method, "by": "eps", "at": settings["levels"],
                         "steps": arrivals(method, one, settings["levels"], settings["seeds"], **how)})
            many = [arrivals(method, Problem(profile, d), [settings["level"]], settings["seeds"], **how)
                    for d in settings["dimensions"]]
            rows.append({"profile": profile, "method": method, "by": "d", "at": settings["dimensions"],
                         "steps": [[many[k][s][0] for k in range(len(many))] for s in range(settings["seeds"])]})
    return rows


def gaps(settings: Settings) -> dict[str, list[float]]:
    """f(x0) - inf f of the runs over eps, by profile and seed."""
    owner = torch.arange(settings["seeds"])
    return {profile: (p := Problem(profile, settings["dimension"])).value(p.starts(Draws(p.d, owner), owner)).tolist()
            for profile in PROFILES}


# ---------------------------------------------------------------------- saddle points

AWAY = 0.5           # |x_2| from which the saddle is left behind
NEAR = 1e-6          # how far beside the line into it a start is still near a saddle
THERE = 1e-6         # how near a coordinate is at a stationary point
ALMOST = 0.95        # of all starts, that so many at least end at a minimum must follow from those tried
SADDLES = {"quadratic": "(x_1^2 - x_2^2) / 2", "bounded": "(x_1^2 - x_2^2) / 2 + x_2^4 / 4"}


def saddle_slope(kind: str, x: Tensor) -> Tensor:
    """"B 2"."""
    second = -x[:, 1] + (x[:, 1] ** 3 if kind == "bounded" else 0.0)
    return torch.stack([x[:, 0], second], 1)


def leave(kind: str, x: Tensor, *, rate: float, limit: int, radius: float = 0.0, calm: float = 0.0, wait: int = 0,
          draws: Draws | None = None, follow: int = 0) -> tuple[list[int | None], list[list[float]], Tensor]:
    """(the first step with |x_2| >= AWAY for each start "B 2", the first `follow` points of the first, the ends).

    With `draws` a point of a disc of `radius` is added where ||grad f|| <= calm, not again within `wait` steps (Jin et
    al. 2017, arXiv:1703.00887).
    """
    everyone = torch.arange(len(x))
    first = torch.full((len(x),), limit + 1)
    since = torch.full((len(x),), wait)
    path = []
    for t in range(limit + 1):
        if t < follow:
            path.append(x[0].tolist())
        first = torch.where(x[:, 1].abs() >= AWAY, first.clamp(max=t), first)
        if bool((first <= t).all()) and t >= follow:
            break
        slope = saddle_slope(kind, x)
        if draws is not None:
            still = (torch.linalg.vector_norm(slope, dim=1) <= calm) & (since >= wait)
            z = draws.normal(everyone, (2,), EXACT)
            length = radius * draws.uniform(everyone, (), EXACT).sqrt()
            noise = z / torch.linalg.vector_norm(z, dim=1, keepdim=True) * length.unsqueeze(1)
            since = torch.where(still, 0, since + 1)
            x = torch.where(still.unsqueeze(1), x + noise, x)
            slope = saddle_slope(kind, x)
        x = x - rate * slope
    return [t if t <= limit else None for t in first.tolist()], path, x


def saddles(settings: Settings) -> dict[str, Any]:
    """Steps to leave from (1, s), for distances s from the line that leads into the saddle."""
    distances = [0.0, *(10.0**-k for k in settings["nearness"])]
    rate, limit, seeds = settings["rate"], settings["saddle_limit"], settings["saddle_seeds"]
    shaken = {"radius": settings["radius"], "calm": settings["calm"], "wait": settings["wait"]}
    found: dict[str, Any] = {"distances": distances, "steps": {}, "paths": {}}
    for kind in SADDLES:
        starts = torch.tensor([[1.0, s] for s in distances], dtype=EXACT)
        plain, _, _ = leave(kind, starts, rate=rate, limit=limit)
        many = starts.repeat_interleave(seeds, 0)
        perturbed, _, _ = leave(kind, many, rate=rate, limit=limit, draws=Draws(0, torch.arange(len(many))), **shaken)
        found["steps"][kind] = {"plain": plain, "perturbed": [perturbed[k:k + seeds]
                                                              for k in range(0, len(many), seeds)]}
        line = torch.tensor([[1.0, 0.0]], dtype=EXACT)
        for name, extra in (("plain", {}), ("perturbed", {**shaken, "draws": Draws(0, torch.arange(1))})):
            _, path, _ = leave(kind, line, rate=rate, limit=limit, follow=settings["follow"], **extra)
            found["paths"][f"{kind}, {name}"] = [[round(v, 5) for v in point] for point in path]
    owner = torch.arange(settings["random_starts"])
    starts = Draws(1, owner).normal(owner, (2,), EXACT)
    x = starts
    for _ in range(limit):
        x = x - rate * saddle_slope("bounded", x)
    centred = x[:, 0].abs() < THERE
    found["random"] = {"starts": len(starts), "at_minima": int((centred & ((x[:, 1].abs() - 1).abs() < THERE)).sum()),
                       "at_saddle": int((centred & (x[:, 1].abs() < THERE)).sum())}
    return found


# ---------------------------------------------------------------------- games

def play(way: str, a: Tensor, x: Tensor, y: Tensor, rate: float, steps: int) -> tuple[Tensor, Tensor]:
    """The points (x "T+1 B n", y alike) of a way to play min_x max_y x'Ay; a "B n n"."""
    xs, ys = [x], [y]
    before_x, before_y = torch.zeros_like(x), torch.zeros_like(y)
    for t in range(steps):
        slope_x, slope_y = torch.einsum("bij,bj->bi", a, y), torch.einsum("bij,bi->bj", a, x)
        if way == "optimistic":
            past_x, past_y = (before_x, before_y) if t else (slope_x, slope_y)
            x, y = x - rate * (2 * slope_x - past_x), y + rate * (2 * slope_y - past_y)
        elif way == "simultaneous":
            x, y = x - rate * slope_x, y + rate * slope_y
        else:
            x = x - rate * slope_x
            y = y + rate * torch.einsum("bij,bi->bj", a, x)
        before_x, before_y = slope_x, slope_y
        xs.append(x)
        ys.append(y)
    return torch.stack(xs), torch.stack(ys)


def game_rate(way: str, singular: Sequence[float], rate: float) -> float:
    """Exactly: the logarithm by which the distance grows a step, of the slowest decay or the fastest growth."""
    grown = []
    for s in singular:
        if way == "simultaneous":
            grown.append(math.log1p((rate * s) ** 2) / 2)
        elif way == "alternating":
            grown.append(0.0)  # rotations, where rate * s < 2
        else:
            root = (1 + 2j * rate * s) ** 2 - 4j * rate * s
            grown.append(math.log(max(abs((1 + 2j * rate * s + sign * root**0.5) / 2) for sign in (1, -1))))
    return max(grown)


def games(settings: Settings) -> dict[str, Any]:
    """Distances from the solution, relative to the start, and where a player of xy goes."""
    count, n, steps, rate = settings["game_seeds"], settings["game_size"], settings["game_steps"], settings["game_rate"]
    owner = torch.arange(count)
    draws = Draws(2, owner)
    left, _ = torch.linalg.qr(draws.normal(owner, (n, n), EXACT))
    right, _ = torch.linalg.qr(draws.normal(owner, (n, n), EXACT))
    singular = 0.5 + 0.5 * draws.uniform(owner, (n,), EXACT)
    a = left @ torch.diag_embed(singular) @ right.mT
    x, y = draws.normal(owner, (n,), EXACT), draws.normal(owner, (n,), EXACT)
    shown = sorted({round(k * steps / 60) for k in range(61)})
    found: dict[str, Any] = {"shown": shown, "ways": {}, "paths": {}}
    for way in GAMES:
        xs, ys = play(way, a, x, y, rate, steps)
        far = (xs.square().sum(2) + ys.square().sum(2)).sqrt()
        far = far / far[0]
        kept = xs.square().sum(2) + ys.square().sum(2) - rate * torch.einsum("tbi,bij,tbj->tb", xs, a, ys)
        half = steps // 2
        found["ways"][way] = {
            "distance": [[float(f"{v:.4g}") for v in far[k].tolist()] for k in shown],
            "rate": ((far[-1] / far[half]).log() / (steps - half)).tolist(),
            "exact": [game_rate(way, row, rate) for row in singular.tolist()],
            "rises_always": bool((far[1:] > far[:-1]).all()),
            "early": [far[:half].amin(0).tolist(), far[:half].amax(0).tolist()],
            "late": [far[half:].amin(0).tolist(), far[half:].amax(0).tolist()],
            "drift": float(((kept - kept[0]).abs() / kept[0].abs()).max())}
        one = torch.ones(1, 1, dtype=EXACT)
        px, py = play(way, one.unsqueeze(0), one, 0 * one, rate, settings["follow"])
        found["paths"][way] = [[round(float(u), 4), round(float(v), 4)]
                               for u, v in zip(px.flatten(), py.flatten(), strict=True)]
    return found


def check(s: Settings) -> None:
    """SystemExit for settings of which no verdict could be computed."""
    counts(s, "limit", "seeds", "dimension", "pairs", "saddle_limit", "saddle_seeds", "random_starts", "game_seeds",
           "game_size", "follow")
    required(isinstance(s["wait"], int) and s["wait"] >= 0, s, "wait", "a whole number from 0 on")
    positive(s, "width", "rate", "radius", "calm", "game_rate")
    required(isinstance(s["game_steps"], int) and s["game_steps"] * s["game_rate"] >= TURNS, s, "game_steps",
             f"a whole number of at least {TURNS / s['game_rate']:.0f}, a turn in each half at game_rate "
             f"{s['game_rate']:g}")
    required(s["rate"] < 1, s, "rate", "a number below 1, with which descent goes into the saddle")
    required(s["game_rate"] < 2, s, "game_rate", "a number below 2, from where on turns are no rotations")
    required(len(set(s["dimensions"])) > 1 and all(isinstance(d, int) and d >= 1 for d in s["dimensions"]), s,
             "dimensions", "two or more different whole numbers from 1 on: an exponent needs them")
    begin = min(float(profile.slope(torch.tensor(end, dtype=EXACT)).square()) for profile in PROFILES.values()
                for end in profile.start)
    within = f"above 0 and below {begin:.3f}, the least ||grad f||^2 of a start"
    required(len(set(s["levels"])) > 1 and all(0 < eps < begin for eps in s["levels"]), s, "levels",
             f"two or more different numbers {within}")
    required(0 < s["level"] < begin, s, "level", f"a number {within}")
    required(all(10.0**-k < AWAY for k in s["nearness"]) and any(10.0**-k <= NEAR for k in s["nearness"]), s,
             "nearness", f"powers k of starts 10^-k that lie below {AWAY:g}, some of them at {NEAR:g} or nearer to "
             "the line")


def measure(settings: Settings, context: Context) -> Numbers:
    check(settings)
    return {"complexity": complexity(settings, context), "gaps": gaps(settings), "saddle": saddles(settings),
            "game": games(settings)}


# ---------------------------------------------------------------------- verdicts

def powers(numbers: Numbers, by: str) -> Powers:
    """The exponent of steps in 1/eps or in d, by profile and method; None where a run did not arrive."""
    found: Powers = {}
    for row in numbers["complexity"]:
        if row["by"] != by:
            continue
        at = [1 / v for v in row["at"]] if by == "eps" else row["at"]
        arrived = all(t is not None for steps in row["steps"] for t in steps)
        steps = [[max(1, t) for t in run] for run in row["steps"]] if arrived else []
        found[row["profile"], row["method"]] = exponents(at, steps) if arrived else None
    return found


def at_most_linear(found: Interval | None) -> str:
    """What the interval says of an exponent of at most 1, to SLACK; nothing where a run did not arrive."""
    return SILENT if found is None else stands(found, at_most=1 + SLACK)


def listed(found: Powers, methods: Sequence[str]) -> str:
    return "; ".join(f"{METHODS[m]} on {p} {'did not arrive' if (f := found[p, m]) is None else told(f)}"
                     for m in methods for p in PROFILES)


def attained(found: Powers, methods: Sequence[str], variable: str) -> str:
    """Which of the methods need the whole of the order on some function: an upper end says nothing of that."""
    those = [f"{METHODS[m]} on {p}" for m in methods for p in PROFILES
             if (f := found[p, m]) is not None and stands(f, at_least=1 - SLACK, at_most=1 + SLACK) == HOLDS]
    return (f"The order in {variable} is attained (interval within {SLACK:g} of 1) by "
            + (", ".join(those) if those else "none"))


def judge(numbers: Numbers, settings: Settings) -> list[Verdict]:
    return [*_judge_gradient(numbers, settings), *_judge_estimates(numbers, settings),
            *_judge_saddle(numbers["saddle"], settings), *_judge_game(numbers["game"], settings)]


def _judge_gradient(numbers: Numbers, settings: Settings) -> list[Verdict]:
    by_eps, worst, bound = powers(numbers, "eps"), 0.0, HOLDS
    for row in numbers["complexity"]:
        if row["by"] == "eps" and row["method"] == "gd":
            for steps, gap in zip(row["steps"], numbers["gaps"][row["profile"]], strict=True):
                for t, eps in zip(steps, row["at"], strict=True):
                    worst = max(worst, math.inf if t is None else t * eps / (2 * gap))
                    if (settings["limit"] + 1 if t is None else t) > 2 * gap / eps:
                        bound = AGAINST
                    elif t is None and bound == HOLDS:
                        bound = SILENT  # the limit on steps lies below the bound
    most = (f"Steps were at most {worst:.3f} of the bound 2 L (f(x0) - inf f) / eps" if math.isfinite(worst) else
            f"Some runs did not arrive in {settings['limit']} steps")
    return [verdict(
        "Gradient descent with step 1/L reaches ||grad f||^2 <= eps in at most O(1/eps) steps", "lecture, Theorem 8.1",
        [bound, *(at_most_linear(by_eps[p, "gd"]) for p in PROFILES)],
        f"{most}; exponents of 1/eps (mean and 95 % interval over starts), whose intervals must end at or below "
        f"{1 + SLACK:g}: {listed(by_eps, ['gd'])}. {attained(by_eps, ['gd'], '1/eps')}; on tail the exponent "
        f"of the gradient flow is {(TAIL + 2) / (2 * TAIL + 2):.2f}.")]


def _judge_estimates(numbers: Numbers, settings: Settings) -> list[Verdict]:
    by_eps, by_d = powers(numbers, "eps"), powers(numbers, "d")
    smooth, other = ("forward", "central"), ("nes", "zoo", "zoo-adam")
    rule = (f"a part holds where the 95 % interval over runs ends at or below {1 + SLACK:g}; in part: at least half of "
            "the parts")
    paid, rest = [], []
    for m in (*smooth, *other):
        for p in PROFILES:
            paid.append(_paid(by_d[p, m], by_d[p, "gd"]))
            rest.append(f"{METHODS[m]} on {p} {_times(numbers, p, m)}")
    return [
        verdict("Descent along a Gaussian finite difference meets ||grad f||^2 <= eps after steps of at most order "
                "1/eps", "lecture, Section 8.2.3, of the expectation after the last step; counted here is the first "
                "step at which a run meets it",
                [at_most_linear(by_eps[p, m]) for m in smooth for p in PROFILES],
                f"Exponents of 1/eps at d = {settings['dimension']} ({rule}): {listed(by_eps, smooth)}. "
                f"{attained(by_eps, smooth, '1/eps')}."),
        verdict("The steps of the same descent are of at most order d", "lecture, Section 8.2.3",
                [at_most_linear(by_d[p, m]) for m in smooth for p in PROFILES],
                f"Exponents of d, {settings['dimensions'][0]} to {settings['dimensions'][-1]}, at eps = "
                f"{settings['level']:g} ({rule}): {listed(by_d, smooth)}. {attained(by_d, smooth, 'd')}."),
        verdict("Steps of NES and ZOO too are of at most these orders", "lecture, Section 8.2.3, where it is said of "
                "random directions one at a time",
                [at_most_linear(found[p, m]) for found in (by_eps, by_d) for m in other for p in PROFILES],
                f"Exponents of 1/eps: {listed(by_eps, other)}. Exponents of d: {listed(by_d, other)}. Rule: {rule}. "
                f"NES takes {settings['pairs']} pairs of values a step, so that d counts from about there on."),
        verdict("Without gradients descent is slower by a low power of the dimension", "lecture, Section 8.2.2",
                paid,
                f"Steps over those of gradient descent at d = {settings['dimensions'][-1]}: {', '.join(rest)}. Rule: "
                f"a part holds where the exponent of d lies above that of gradient descent ({listed(by_d, ['gd'])}) by "
                f"more than {SLACK:g}, intervals apart, and its interval ends at or below {1 + SLACK:g}; in part: at "
                f"least half of the parts.")]


def _paid(found: Interval | None, gradient: Interval | None) -> str:
    """What two exponents of d say of a price in the dimension that is a low power."""
    if found is None or gradient is None:
        return SILENT
    more = Interval(found.mean - gradient.mean, found.low - gradient.high, found.high - gradient.low, found.n)
    return together(stands(more, above=SLACK), at_most_linear(found))


def _times(numbers: Numbers, profile: str, method: str) -> str:
    """Steps in the largest dimension over those of gradient descent, medians over seeds."""
    middle = {row["method"]: statistics.median(math.inf if run[-1] is None else run[-1] for run in row["steps"])
              for row in numbers["complexity"]
              if row["by"] == "d" and row["profile"] == profile and row["method"] in (method, "gd")}
    return "unknown" if math.isinf(max(middle.values())) else f"{middle[method] / max(1, middle['gd']):.0f} times"


def freed(alone: int | None, runs: Sequence[int | None], limit: int) -> str:
    """What runs from one start say of "perturbed runs leave sooner": without them it left after `alone` steps, or had
    not after `limit`."""
    left = [t for t in runs if t is not None]
    if len(left) < len(runs):
        return SILENT if alone is None else AGAINST
    gain = interval([(limit + 1 if alone is None else alone) - t for t in left])
    return stands(gain, above=0)


def _judge_saddle(found: dict[str, Any], settings: Settings) -> list[Verdict]:
    random, limit = found["random"], settings["saddle_limit"]
    starts, minima, saddle = (random[key] for key in ("starts", "at_minima", "at_saddle"))
    reach = share(minima, starts)
    ended = AGAINST if saddle else OPEN if minima < starts else HOLDS if reach.low >= ALMOST else SILENT
    close = [k for k, s in enumerate(found["distances"]) if s <= NEAR]
    states, told_of = [], []
    for kind in SADDLES:
        steps = found["steps"][kind]
        states += [freed(steps["plain"][k], steps["perturbed"][k], limit) for k in close]
        for k in (close[0], close[-1]):
            left = [t for t in steps["perturbed"][k] if t is not None]
            many = len(steps["perturbed"][k])
            alone = steps["plain"][k]
            told_of.append(f"from s = {found['distances'][k]:g} on the {kind} function "
                           + (f"more than {limit}" if alone is None else str(alone)) + " steps alone and "
                           + (f"{told(interval(left), 0)} perturbed" if len(left) == many else
                              f"{len(left)} of {many} perturbed runs left in {limit}"))
    return [
        verdict("From almost every start gradient descent ends at a second-order stationary point, not at a strict "
                "saddle", "lecture, Section 8.4.1, Remark 8.2", [ended],
                f"Of {starts} starts (standard normal) on {SADDLES['bounded']} {minima} were at one of its two minima "
                f"after {limit} steps ({100 * reach.low:.1f} % of all starts or more, Wilson's 95 % interval) and "
                f"{saddle} at the saddle. Rule: all are at a minimum, and that end is {100 * ALMOST:g} % or more."),
        verdict("Near a saddle gradient descent is stuck, and small perturbations free it sooner",
                "lecture, Section 8.4.1, Figure 8.2", states,
                f"From (1, s), s the distance from the line that leads into the saddle: {'; '.join(told_of)} (means "
                f"with 95 % intervals over {settings['saddle_seeds']} seeds). Rule: for each function and s up to "
                f"{NEAR:g} all perturbed runs leave, and what their mean gains on the run alone has an interval above "
                f"zero; in part: at least half of the parts. From s = 0 descent alone cannot leave; else it "
                f"needs log({AWAY:g} / s) / log(1 + {settings['rate']:g}) steps on the quadratic: in two dimensions "
                "stuck means a logarithm, not for ever.")]


def _judge_game(found: dict[str, Any], settings: Settings) -> list[Verdict]:
    ways = found["ways"]
    rates = {way: interval(ways[way]["rate"]) for way in GAMES}

    def grows(way: str) -> str:
        exact = sum(ways[way]["exact"]) / len(ways[way]["exact"])
        return (f"The logarithm of the distance changes by {told(rates[way], 5)} a step in the second half (exactly, "
                f"of its dominant part: {exact:.5f}), {settings['game_seeds']} games of {settings['game_size']} x "
                f"{settings['game_size']} with singular values in [0.5, 1], step {settings['game_rate']:g}")

    turns = ways["alternating"]
    (early_low, early_high), (late_low, late_high) = turns["early"], turns["late"]
    ratio = max(max(a / b, b / a) for a, b in zip([*early_low, *early_high], [*late_low, *late_high], strict=True))
    return [
        verdict("Gradient descent-ascent at the same time diverges on x'Ay", "Daskalakis et al. 2018, Section 1; Zhang "
                "and Yu 2020", [stands(rates["simultaneous"], above=0)],
                f"{grows('simultaneous')}. Rule: the interval lies above zero. The distance from the "
                f"solution {'rose' if ways['simultaneous']['rises_always'] else 'did not rise'} with every step."),
        verdict("Optimistic descent-ascent converges on x'Ay", "Daskalakis et al. 2018, Theorem 1",
                [stands(rates["optimistic"], below=0)],
                f"{grows('optimistic')}. Rule: the interval lies below zero."),
        verdict("In turns it neither converges nor diverges: it cycles", "Zhang and Yu 2020; Deng et al. 2020, Section "
                "6, holds a cyclic dynamic of the whole training to be possible",
                [plain(turns["drift"] < 1e-9 and ratio < 1.1)],
                f"x'x + y'y - eta x'Ay stays the same to {turns['drift']:.0e}, and the least and largest distances "
                f"of the second half are those of the first to a factor of {ratio:.3f}. Rule: below 1e-9 and below "
                "1.1.")]


# ---------------------------------------------------------------------- figures and table

def draw(numbers: Numbers, settings: Settings) -> dict[str, Drawing]:
    return {"steps": _draw_steps(numbers, settings), "saddle": _draw_saddle(numbers["saddle"], settings),
            "game": _draw_game(numbers["game"], settings)}


def _draw_steps(numbers: Numbers, settings: Settings) -> Drawing:
    from verifier.panels import new_figure
    figure = new_figure(8.4, 6.2)
    axes = figure.subplots(2, 2)
    for row in numbers["complexity"]:
        axis = axes[list(PROFILES).index(row["profile"])][("eps", "d").index(row["by"])]
        at = [1 / v for v in row["at"]] if row["by"] == "eps" else row["at"]
        columns = [[t for t in column if t is not None] for column in zip(*row["steps"], strict=True)]
        known = [(v, sorted(column)) for v, column in zip(at, columns, strict=True) if len(column) == len(row["steps"])]
        if not known:
            continue
        middle = [max(1, statistics.median(column)) for _, column in known]
        axis.plot([v for v, _ in known], middle, color=COLOURS[row["method"]], marker=MARKS[row["method"]], ms=5,
                  label=METHODS[row["method"]])
        axis.fill_between([v for v, _ in known], [max(1, c[0]) for _, c in known], [max(1, c[-1]) for _, c in known],
                          color=COLOURS[row["method"]], alpha=0.15, linewidth=0)
    for i, (name, profile) in enumerate(PROFILES.items()):
        for j, by in enumerate(("1 / eps", "dimension d")):
            axis = axes[i][j]
            if axis.lines:  # an empty axis has no logarithms
                axis.set_xscale("log")
                axis.set_yscale("log")
                _guide(axis)
            axis.set_title(f"{name}, at eps = {settings['level']:g}" if j else f"{name}: {profile.words}", fontsize=9)
            axis.set_xlabel(by if j else f"1 / eps (at d = {settings['dimension']})")
            axis.set_ylabel("steps")
            axis.grid(alpha=0.3)
    if axes[0][1].lines:
        axes[0][1].legend(fontsize=6.5, loc="upper left")
    return Drawing(figure, (
        "Steps until ||grad f||^2 <= eps, against 1/eps (left) and the dimension (right), on two functions f(x) = "
        f"mean_i psi(sqrt(d) x_i). Median and range over {settings['seeds']} seeds (starts and directions), where all "
        f"arrived in {settings['limit']} steps; the dotted line has slope 1. A step takes one gradient, two values, or "
        f"{2 * settings['pairs']} (NES). Width of differences {settings['width']:g}."))


def _guide(axis: Axes) -> None:
    """A line of slope 1 through the lower left corner of what is drawn."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    axis.plot([left, right], [low * 1.5, low * 1.5 * right / left], ":", color="0.4", linewidth=1)
    axis.set_xlim(left, right)
    axis.set_ylim(low, high)


def _draw_saddle(found: dict[str, Any], settings: Settings) -> Drawing:
    import numpy as np

    from verifier.panels import new_figure
    figure = new_figure(10.0, 3.8)
    plane, quadratic, bounded = figure.subplots(1, 3)
    side = np.linspace(-1.2, 1.2, 121)
    first, second = np.meshgrid(side, side)
    plane.contour(first, second, (first**2 - second**2) / 2 + second**4 / 4, 12, cmap="Greys", linewidths=0.7)
    for name, colour, width in (("plain", "#D55E00", 5), ("perturbed", "#0072B2", 1)):
        path = np.array(found["paths"][f"bounded, {name}"])
        plane.plot(path[:, 0], path[:, 1], ".-", color=colour, markersize=3 + width, linewidth=width,
                   label="gradient descent" if name == "plain" else "perturbed")
    plane.plot([0, 0], [-1, 1], "k*", label="minima")
    plane.plot([0], [0], "kx", label="saddle")
    plane.set_xlabel("x_1")
    plane.set_ylabel("x_2")
    plane.set_title(f"from (1, 0) on {SADDLES['bounded']}", fontsize=8)
    plane.legend(fontsize=7)
    for axis, kind in ((quadratic, "quadratic"), (bounded, "bounded")):
        at = found["distances"][1:]
        steps = found["steps"][kind]
        axis.plot(at, [np.nan if t is None else t for t in steps["plain"][1:]], "o-", color="#D55E00",
                  label="gradient descent")
        runs = [[t for t in run if t is not None] or [np.nan] for run in steps["perturbed"]]
        axis.plot(at, [np.mean(r) for r in runs[1:]], "s-", color="#0072B2", label="perturbed, mean")
        axis.fill_between(at, [min(r) for r in runs[1:]], [max(r) for r in runs[1:]], color="#0072B2", alpha=0.2,
                          linewidth=0)
        axis.axhline(float(np.mean(runs[0])), color="#0072B2", linestyle=":", label="perturbed, from the line")
        axis.set_xlim(min(at) / 2, 2 * max(at))  # where nothing left, nothing drawn says where the axis ends
        axis.set_xscale("log")
        axis.set_xlabel("s, for starts (1, s)")
        axis.set_ylabel(f"steps until |x_2| >= {AWAY:g}")
        axis.set_title(SADDLES[kind], fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return Drawing(figure, (
        f"Left: the first {settings['follow']} points of gradient descent (step {settings['rate']:g}) from the line "
        f"that leads into the saddle, alone and with a point of a disc of radius {settings['radius']:g} added where "
        f"the gradient is below {settings['calm']:g}. Middle and right: steps to leave, over "
        f"{settings['saddle_seeds']} seeds (mean and range); a run that did not leave in "
        f"{settings['saddle_limit']} steps is not drawn."))


def _draw_game(found: dict[str, Any], settings: Settings) -> Drawing:
    import numpy as np

    from verifier.panels import new_figure
    figure = new_figure(9.0, 3.9)
    plane, axis = figure.subplots(1, 2)
    for way, words in GAMES.items():
        path = np.array(found["paths"][way])
        plane.plot(path[:, 0], path[:, 1], "-", color=GAME_COLOURS[way], linewidth=1.2, label=words)
        distance = np.array(found["ways"][way]["distance"])
        axis.plot(found["shown"], np.median(distance, 1), color=GAME_COLOURS[way], label=words)
        axis.fill_between(found["shown"], distance.min(1), distance.max(1), color=GAME_COLOURS[way], alpha=0.2,
                          linewidth=0)
    plane.plot([0], [0], "kx")
    plane.plot([1], [0], "ko", markersize=4)
    plane.set_aspect("equal")
    plane.set_xlabel("x")
    plane.set_ylabel("y")
    plane.set_title("min over x, max over y of x y, from (1, 0)", fontsize=9)
    axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("distance from the solution / that of the start")
    n = settings["game_size"]
    axis.set_title(f"x'Ay, {n} x {n}, {settings['game_seeds']} seeds", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return Drawing(figure, (
        f"Descent-ascent on bilinear games, step {settings['game_rate']:g}. Left: {settings['follow']} steps of each "
        f"way. Right: median and range over {settings['game_seeds']} random games with singular values in [0.5, 1]."))


def table(numbers: Numbers, settings: Settings) -> str:
    by_eps, by_d = powers(numbers, "eps"), powers(numbers, "d")
    lines = []
    for p in PROFILES:
        for m in METHODS:
            cells = ["" if found is None else told(found) for found in (by_eps[p, m], by_d[p, m])]
            lines.append([p, METHODS[m], *cells, _times(numbers, p, m)])
    return markdown(["function", "method", "exponent of 1/eps", "exponent of d",
                     f"steps at d = {settings['dimensions'][-1]}, over gradient descent"], lines, 2)


# ---------------------------------------------------------------------- settings

COMMON: Settings = {"width": 1e-4, "pairs": 10, "rate": 0.1, "saddle_limit": 2000, "radius": 0.01,
                    "calm": 0.01, "wait": 50, "follow": 150, "game_size": 4, "game_rate": 0.1}
MODES: dict[str, Settings] = {
    "quick": {**COMMON, "limit": 20_000, "seeds": 3, "dimension": 2, "levels": [0.01, 0.003, 0.001],
              "dimensions": [2, 4, 8], "level": 0.01,
              "saddle_seeds": 5, "nearness": [1, 6, 12], "random_starts": 100, "game_seeds": 3, "game_steps": 1000},
    "default": {**COMMON, "limit": 80_000, "seeds": 10, "dimension": 8, "levels": [0.01, 0.003, 0.001, 0.0003],
                "dimensions": [4, 16, 64, 256], "level": 0.01, "saddle_seeds": 20, "nearness": list(range(1, 13)),
                "random_starts": 1000, "game_seeds": 10, "game_steps": 2000},
    "paper": {**COMMON, "limit": 400_000, "seeds": 20, "dimension": 8, "levels": [0.01, 0.003, 0.001, 0.0003, 0.0001],
              "dimensions": [4, 16, 64, 256, 1024], "level": 0.01, "saddle_seeds": 100, "nearness": list(range(1, 16)),
              "random_starts": 10_000, "game_seeds": 20, "game_steps": 4000},
}
STUDY = Study(
    name="zeroth_order", title="Descent without gradients, at saddle points and in games",
    source="lecture on adversarial attacks and certified defence, Sections 8.2 and 8.4; Daskalakis et al. 2018, "
           "arXiv:1711.00141; Zhang and Yu 2020, arXiv:1908.05699",
    modes=MODES, measure=measure, draw=draw, judge=judge, table=table)

if __name__ == "__main__":
    sys.exit(run(STUDY))
