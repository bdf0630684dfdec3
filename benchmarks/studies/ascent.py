"""What projected gradient ascent does in the ball of an attack: where it ends, how soon, and how many ends there are.

    python benchmarks/studies/ascent.py [--mode quick|default|paper]    # paper: the largest

Deng et al. 2020 study max over ||delta||_2 <= eps of (y - f(x + delta))^2 for two-layer softplus networks with Xavier
weights. In its proofs the paper minimises the negative loss: its local minima are the local maxima of the loss, which
is how they are called here throughout. The networks are in closed form (`two_layer`), all networks and starts at once;
what ascent does on images is the study `escape`.

Ascent has two rules of steps here. With one eta for all inputs, as in the paper, a smaller input scale at the same
ratio eps / ||x|| makes the ball smaller against the step, which alone makes leaving quicker; steps that are a share of
eps take that effect away and leave what the landscape does.

On spheres of d >= 3 Lemma 4.4 (no saddle points) and Theorem 5.1 (one maximum) go together: between two maxima there
is a mountain pass, which is a saddle unless it lies where y = f and the loss is zero. The paper's scales, widths and
step sizes stand in a supplement that is not at hand: on the circle its text names the scale 0.01 and the ratio 10, the
rest is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

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
from benchmarks.studies.fits import exponents, interval, share, told, trend  # noqa: E402
from benchmarks.studies.image_escape import HALF, RULES, at_an_end  # noqa: E402
from benchmarks.studies.study import (  # noqa: E402
    PALETTE,
    Context,
    Drawing,
    Numbers,
    Settings,
    Study,
    Verdict,
    ascending,
    positive,
    required,
    run,
)
from benchmarks.studies.two_layer import (  # noqa: E402
    EXACT,
    TwoLayer,
    ascended,
    at_angles,
    circle_extrema,
    drawn,
    first_of_each,
    in_ball,
    is_on_sphere,
    kinds,
    projected,
    riemannian,
    safe_rate,
    settled,
    tangent,
)

SLACK = 0.1              # by which a fitted exponent may miss the claimed one
NEAR = 0.01              # radians between a minimum on the circle and the start beside it
SHARE = 0.1              # of eps: a step of the relative rule on the circle
PICTURE = 41             # pixels of a landscape's side
SAME_LOSS = 1e-6         # relative: end points with losses as near as this reached the same height
AWAY_FROM_ZERO = 0.1     # |y - f| below which the paper's assumption counts as broken
LIKELY = 0.8             # what "with high probability" has to reach at least
PARALLEL = 0.99          # a cosine
# The factors of the corollary's condition (3) are 1 - beta eta / 2, as if a step eta shrank D by that at least. Near a
# maximum of curvature c it shrinks D by (1 - c eta)^2: beta is 4 c at the most, where D falls like 1 / (z + s) exactly.
TIGHT = 4.0


# ---------------------------------------------------------------------- the circle (Figure 1)

def left_after(net: TwoLayer, bottom: Tensor, eps: float, rule: str, eta: float, limit: int) -> Tensor:
    """From both sides of points "N" (angles) on the circle: the step after which the loss has done half of the rise
    that the whole ascent of `limit` steps does: "N 2"."""
    delta = at_angles(torch.stack([bottom - NEAR, bottom + NEAR], 1), eps)
    losses = []
    for _ in range(limit + 1):
        loss, slope = net.loss_and_slope(delta)
        losses.append(loss)
        move = SHARE * eps * functional.normalize(slope, dim=2) if rule == "relative" else eta * slope
        delta = projected(delta + move, eps)
    path = torch.stack(losses)
    return (path - path[0] >= HALF * (path.amax(0) - path[0])).long().argmax(0)


def landscapes(settings: Settings, context: Context) -> list[dict[str, Any]]:
    """For every scale and ratio: how many maxima the circle has and how soon the lowest minimum is left, network by
    network; the picture of the first one."""
    rows = []
    for scale in settings["scales"]:
        net = drawn(settings["seed"], settings["circle_nets"], 2, settings["circle_width"], scale)
        for ratio in settings["ratios"]:
            context.tell(f"circle: scale {scale:g}, ratio {ratio:g}")
            eps = scale * ratio
            each = [circle_extrema(net.take(torch.tensor([k])), eps) for k in range(len(net))]
            bottom = torch.tensor([e.minima[min(range(len(e.lows)), key=e.lows.__getitem__)] for e in each],
                                  dtype=EXACT)
            row: dict[str, Any] = {"scale": scale, "ratio": ratio, "eps": eps, "maxima": [len(e.maxima) for e in each],
                                   "unresolved": sum(not e.resolved for e in each), "steps": {}}
            for rule in RULES:
                first = left_after(net, bottom, eps, rule, settings["eta"], settings["leave_limit"])
                row["steps"][rule] = first.double().mean(1).tolist()
                if rule == "fixed":
                    # On until the end is at rest: a few times the steps that leaving took.
                    steps = min(settings["leave_limit"], 3 * int(first[0, 0]) + 10)
                    start = at_angles(bottom[:1] - NEAR, eps).unsqueeze(1)
                    one = net.take(torch.tensor([0]))
                    row["picture"] = picture(one, eps, each[0].maxima, start, settings["eta"], steps)
            rows.append(row)
    return rows


def picture(net: TwoLayer, eps: float, maxima: list[float], start: Tensor, eta: float, steps: int) -> dict[str, Any]:
    """The loss of one network over the square around the disc, a hexadecimal byte each, and an ascent from "1 1 2"."""
    side = torch.linspace(-1.1, 1.1, PICTURE, dtype=EXACT) * eps
    loss = net.loss(torch.stack(torch.meshgrid(side, side, indexing="xy"), 2).view(1, -1, 2)).view(PICTURE, PICTURE)
    low, high = float(loss.min()), float(loss.max())
    shades = ((loss - low) / max(high - low, 1e-300) * 255).round().to(torch.uint8)
    path, rate = [start], torch.tensor(eta, dtype=EXACT)
    for _ in range(steps):
        path.append(ascended(net, path[-1], eps, rate, 1))
    shown = sorted({round(k * steps / 60) for k in range(61)})
    return {"loss": [bytes(line).hex() for line in shades.tolist()], "low": float(f"{low:.5g}"),
            "high": float(f"{high:.5g}"), "maxima": [round(a, 4) for a in maxima[:40]], "steps": steps,
            "path": [[round(v, 4) for v in (path[k] / eps).flatten().tolist()] for k in shown]}


# ---------------------------------------------------------------------- spheres (Theorem 5.1, Lemma 4.4)

def sphere(d: int, width: int, eps: float, settings: Settings) -> dict[str, Any]:
    """What the sphere of one radius around inputs of length 1 holds, and where ascents from uniform starts end."""
    nets, points, steps = settings["nets"], settings["starts"], settings["ascent_steps"]
    net = drawn(settings["seed"], nets, d, width, 1.0)
    start = in_ball(settings["seed"], nets, points, d, eps)
    rim = eps * functional.normalize(start, dim=2)
    rate = safe_rate(net, torch.cat([start, rim], 1), eps)
    end, low = ascended(net, start, eps, rate, steps), ascended(net, start, eps, -rate, steps)
    bottom = net.loss(low).amin(1)
    best = net.loss(end).amax(1)
    row: dict[str, Any] = {"d": d, "width": width, "eps": eps,
                           "on_sphere": float(is_on_sphere(end, eps).double().mean()),
                           "bounded_away": int((bottom.sqrt() >= AWAY_FROM_ZERO).sum())}
    if d == 2:
        each = [circle_extrema(net.take(torch.tensor([k])), eps) for k in range(nets)]
        best = torch.maximum(best, torch.tensor([max(e.highs) for e in each], dtype=EXACT))
    row["best"] = (net.loss(end) >= best.unsqueeze(1) * (1 - SAME_LOSS)).double().mean(1).tolist()
    slope = functional.normalize(net.output_slope(torch.cat([start, rim], 1)), dim=2)
    row["cosine"] = (slope @ slope.mT).amin((1, 2)).tolist()
    # Critical points of all kinds: where ascent and descent end, and where Newton's method goes from anywhere and from
    # the lowest point between two ends.
    all_, is_critical = settled(net, torch.cat([end, low, rim, passes(net, end, eps)], 1), eps)
    # Where y = f the loss has a whole surface of minima, which the paper's assumption excludes.
    is_critical &= net.loss(all_) >= AWAY_FROM_ZERO**2
    is_new, kind = first_of_each(all_, eps, is_critical), kinds(net, all_)
    counts = {name: (is_new & (kind == k)).sum(1).tolist()
              for name, k in (("maxima", 1), ("saddles", 0), ("minima", -1))}
    if d == 2:
        counts["maxima"] = [len(e.maxima) for e in each]
        row["unresolved"] = sum(not e.resolved for e in each)
    return {**row, **counts}


def passes(net: TwoLayer, end: Tensor, eps: float) -> Tensor:
    """Where the loss is lowest on the way over the sphere from each end "N P d" to the next: near a saddle, if any."""
    shares = torch.linspace(0, 1, 21, dtype=EXACT)[:, None]
    way = end.unsqueeze(2) * (1 - shares) + end.roll(-1, 1).unsqueeze(2) * shares
    way = eps * functional.normalize(way, dim=3)
    lowest = net.loss(way.flatten(1, 2)).view(way.shape[:3]).argmin(2)
    return way.gather(2, lowest[:, :, None, None].expand(-1, -1, 1, way.shape[3])).squeeze(2)


def spheres(settings: Settings, context: Context) -> list[dict[str, Any]]:
    rows = []
    for d, width, radii in ((2, settings["circle_width"], settings["circle_radii"]),
                            (settings["d"], settings["width"], settings["radii"])):
        for eps in radii:
            context.tell(f"sphere: d = {d}, eps = {eps:g}")
            rows.append(sphere(d, width, eps, settings))
    return rows


# ---------------------------------------------------------------------- rates (Theorem 3.1, Corollary 3.1)

def arrived(net: TwoLayer, delta: Tensor, eps: float, eta: float, limit: int) -> tuple[Tensor, Tensor]:
    """Ascent with a fixed step until a point is on the sphere with a slope along it of at most sqrt(eta), the paper's
    neighbourhood of a maximum: (the points "N P d", the steps "N P", limit + 1 where it was not reached)."""
    first = torch.full(delta.shape[:2], limit + 1)
    stop = delta.clone()
    for t in range(limit + 1):
        _, slope = net.loss_and_slope(delta)
        flat = torch.linalg.vector_norm(tangent(slope, delta), dim=2)
        new = is_on_sphere(delta, eps) & (flat <= eta**0.5) & (first > limit)
        first[new] = t
        stop[new] = delta[new]
        if t % 16 == 0 and bool((first <= limit).all()):
            break
        delta = projected(delta + eta * slope, eps)
    return stop, first


def rates(settings: Settings, context: Context) -> dict[str, Any]:
    """Steps and distances of the theorem's stopping point by step size, and the decay after it with shrinking steps."""
    d, eps, limit = settings["d"], settings["rate_eps"], settings["rate_limit"]
    net = drawn(settings["seed"] + 1, settings["rate_nets"], d, settings["width"], 1.0)
    start = in_ball(settings["seed"] + 1, len(net), settings["rate_starts"], d, eps)
    found: dict[str, Any] = {"steps": [], "distance": [], "late": 0, "not_maxima": 0}
    for eta in settings["etas"]:
        context.tell(f"rate: eta = {eta:g}")
        stop, first = arrived(net, start, eps, eta, limit)
        goal, is_critical = settled(net, stop, eps)
        far = torch.linalg.vector_norm(stop - goal, dim=2)
        found["late"] += int((first > limit).sum())
        found["not_maxima"] += int(((first <= limit) & (~is_critical | (kinds(net, goal) != 1))).sum())
        found["steps"].append(first.double().mean(1).tolist())
        found["distance"].append(far.log().mean(1).exp().tolist())
        if eta == settings["shrink_from"]:
            context.tell("rate: shrinking steps")
            found["shrinking"] = [shrinking(net, stop, goal, eps, eta, multiple, settings["shrink_steps"])
                                  for multiple in settings["multiples"]]
    return found


def shrinking(net: TwoLayer, delta: Tensor, goal: Tensor, eps: float, eta: float, multiple: float, steps: int,
              ) -> dict[str, Any]:
    """Steps 2 / (beta (s + z)) from points "N P d" near maxima `goal`, with beta a multiple of the least curvature
    there and z such that the first step is eta: D_s = ||delta_s - goal||^2, and its exponent in z + s by network."""
    _, hessian, n = riemannian(net, goal)
    normal = n.unsqueeze(3) * n.unsqueeze(2) * 2 * hessian.abs().amax((2, 3), keepdim=True) * net.d
    beta = multiple * -torch.linalg.eigvalsh(hessian - normal)[..., -1]
    z = (2 / (beta * eta)).ceil()
    shown = sorted({round(steps ** (k / 40)) for k in range(41)} | {0})
    squares = []
    for s in range(steps + 1):
        if s in shown:
            squares.append((delta - goal).square().sum(2))
        _, slope = net.loss_and_slope(delta)
        delta = projected(delta + (2 / (beta * (s + z))).unsqueeze(2) * slope, eps)
    distance = torch.stack(squares)
    at = (torch.tensor(shown, dtype=EXACT)[:, None, None] + z).log()
    # Least squares in logarithms, for every trajectory at once; what is left of it after rounding is not fitted.
    low = distance.clamp(min=1e-26).log()
    centred = at - at.mean(0)
    slopes = (centred * low).sum(0) / centred.square().sum(0)
    return {"multiple": multiple, "exponent": slopes.mean(1).tolist(), "shown": shown, "z": float(z.quantile(0.5)),
            "median": [float(f"{v:.4g}") for v in distance.flatten(1).quantile(0.5, 1).tolist()]}


def check(settings: Settings) -> None:
    """SystemExit for settings of which no verdict could be given."""
    ascending(settings, 3, "scales", "ratios", "circle_radii", "radii")  # with two there is no trend
    positive(settings, "scales", "ratios", "circle_radii", "radii", "etas", "multiples", "eta", "rate_eps",
             "circle_nets", "circle_width", "leave_limit", "width", "nets", "starts", "ascent_steps", "rate_nets",
             "rate_starts", "rate_limit", "shrink_steps")
    required(settings["d"] >= 3, settings, "d", "at least 3, the circle is looked at anyway")
    required(len(set(settings["etas"])) > 1, settings, "etas", "at least two different ones")
    required(settings["shrink_from"] in settings["etas"], settings, "shrink_from", f"one of etas, {settings['etas']}")
    required(TIGHT in settings["multiples"], settings, "multiples", f"{TIGHT:g} among them: it is the one that is "
             "judged")


def measure(settings: Settings, context: Context) -> Numbers:
    check(settings)
    return {"circle": landscapes(settings, context), "spheres": spheres(settings, context),
            "rates": rates(settings, context)}


# ---------------------------------------------------------------------- verdicts

def judge(numbers: Numbers, settings: Settings) -> list[Verdict]:
    return [*_judge_rates(numbers["rates"], settings), *_judge_spheres(numbers["spheres"], settings),
            *_judge_circle(numbers["circle"], settings)]


def _judge_rates(found: dict[str, Any], settings: Settings) -> list[Verdict]:
    etas, starts = settings["etas"], settings["rate_nets"] * settings["rate_starts"]
    by_net = list(zip(*found["distance"], strict=True)), list(zip(*found["steps"], strict=True))
    setting = (f"d = {settings['d']}, {settings['width']} neurons, eps = {settings['rate_eps']:g}, "
               f"{settings['rate_nets']} networks with {settings['rate_starts']} starts, eta from {min(etas):g} to "
               f"{max(etas):g}")
    # A run that has not arrived may be on its way, and how many steps it takes is not known.
    arrives = AGAINST if found["not_maxima"] else OPEN if found["late"] else HOLDS
    soon, orders = SILENT, "how many steps the others take is not known"
    if not found["late"]:
        near, long = exponents(etas, by_net[0]), exponents([1 / eta for eta in etas], by_net[1])
        soon = stands(long, below=2 + SLACK)
        orders = (f"the steps go like (1/eta)^{told(long)} (less than {2 + SLACK:g} is asked for; {soon}), interval "
                  f"over networks. That the distance from the maximum goes like eta^{told(near)} follows from where "
                  "runs are stopped, as it is slope by curvature, and is not judged")
    return [verdict(
        "For small eps and eta ascent from a random start comes, in O(1/eta^2) steps, to a point on the sphere beside "
        "a local maximum, with a slope along the sphere of at most sqrt(eta)", "Deng et al. 2020, Theorem 3.1",
        [arrives, together(arrives, soon)],
        f"{setting}: {len(etas) * starts - found['late']} of {len(etas) * starts} runs came to the sphere with such a "
        f"slope within {settings['rate_limit']} steps, and {found['not_maxima']} of those points did not belong to a "
        f"maximum, to which Newton's method leads from there (all runs at maxima are asked for; {arrives}); {orders}."),
        _judge_shrinking(found["shrinking"], settings)]


def _judge_shrinking(rows: list[dict[str, Any]], settings: Settings) -> Verdict:
    limit = -1 + SLACK
    each = {row["multiple"]: interval(row["exponent"]) for row in rows}
    said = stands(each[TIGHT], below=limit)
    fast = {HOLDS: "fast enough", AGAINST: "too slow", OPEN: "fast enough or too slow", SILENT: "of one network"}
    others = "; ".join(f"at beta {multiple:g} times the curvature {told(found)}, {fast[stands(found, below=limit)]} (a "
                       f"linear model gives {-4 / multiple:g})"
                       for multiple, found in each.items() if multiple != TIGHT)
    return verdict(
        "With steps 2 / (beta (s + z)) the squared distance from the maximum falls at least as fast as 1 / (z + s)",
        "Deng et al. 2020, Corollary 3.1 and Remark 3", [said],
        f"Exponent of z + s after the stopping point of eta = {settings['shrink_from']:g}, over "
        f"{settings['shrink_steps']} steps, at beta {TIGHT:g} times the least curvature at the maximum: "
        f"{told(each[TIGHT])} (less than {limit:g} is asked for; {said}; interval over {each[TIGHT].n} networks). "
        f"The paper's constant is in its supplement; {TIGHT:g} times is the largest for which a linear model has this "
        f"order, {-4 / TIGHT:g}" + (f". Not judged: {others}." if others else "."))


def by_dimension(rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Rows of each dimension, smallest eps first."""
    return {d: sorted((r for r in rows if r["d"] == d), key=lambda r: r["eps"]) for d in sorted({r["d"] for r in rows})}


def _ends(rows: list[dict[str, Any]], name: str) -> str:
    """Means over networks at the smallest and the largest eps."""
    parts = []
    for d, mine in by_dimension(rows).items():
        values = [r[name] if isinstance(r[name], float) else sum(r[name]) / len(r[name]) for r in (mine[0], mine[-1])]
        parts.append(f"d = {d}: {values[0]:.0%} at eps = {mine[0]['eps']:g}, {values[1]:.0%} at {mine[-1]['eps']:g}")
    return "; ".join(parts)


def order(rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], Sequence[float]], by: str, sign: int = 1,
          ) -> tuple[str, str]:
    """What is said to the claim that what networks have rises (with sign -1 falls) with `by`, one run a network, which
    is the same in every row; and the words for it."""
    places = [row[by] for row in rows]
    found = trend((places, values) for values in zip(*map(value, rows), strict=True))
    said = stands(found, above=0) if sign > 0 else stands(found, below=0)
    return said, f"Spearman's rho {told(found)} over {found.n} networks"


def _trends(rows: list[dict[str, Any]], name: str, sign: int) -> tuple[str, str]:
    """The same by eps, in every dimension."""
    found = {d: order(mine, lambda r: r[name], "eps", sign) for d, mine in by_dimension(rows).items()}
    said = together(*(f[0] for f in found.values()))
    return said, "; ".join([*(f"d = {d}, {f[1]}" for d, f in found.items()), said])


def _judge_spheres(rows: list[dict[str, Any]], settings: Settings) -> list[Verdict]:
    least = [mine[0] for mine in by_dimension(rows).values()]
    runs = settings["nets"] * settings["starts"]
    # Ends inside the ball may be on their way; an end that is lower than the best is at rest only beside a lower top.
    ends = HOLDS if all(r["on_sphere"] == 1 for r in least) else OPEN
    lower = [maxima for r in least for best, maxima in zip(r["best"], r["maxima"], strict=True) if best < 1]
    best = AGAINST if any(k > 1 for k in lower) else OPEN if lower else HOLDS
    worse, worse_words = _trends(rows, "best", -1)
    close = HOLDS if all(v >= PARALLEL for r in least for v in r["cosine"]) else OPEN
    turns, turns_words = _trends(rows, "cosine", -1)
    worst = "; ".join(f"d = {d}: {min(mine[0]['cosine']):.4f} at eps = {mine[0]['eps']:g}, "
                      f"{min(mine[-1]['cosine']):.2f} at {mine[-1]['eps']:g}" for d, mine in by_dimension(rows).items())
    return [
        verdict("At small eps ascent ends on the sphere, not inside the ball",
                "Deng et al. 2020, Lemma 4.1 and Section 3.1", [ends],
                f"Of {runs} runs of {settings['ascent_steps']} steps, {_ends(rows, 'on_sphere')}; at the smallest all "
                f"are asked for ({ends})."),
        _no_saddles(rows, settings), _one_maximum(rows, settings),
        verdict("At so small eps ascent reaches the global maximum, at larger ones less often",
                "Deng et al. 2020, Section 5.1.1", [best, together(best, worse)],
                f"Random starts that end as high as the best known point, after {settings['ascent_steps']} steps: "
                f"{_ends(rows, 'best')}; at the smallest all are asked for ({best}). The share falls as eps grows "
                f"({worse_words})."),
        verdict("As eps falls, gradients within the ball become parallel", "Deng et al. 2020, Section 5.1.1",
                [turns, together(turns, close)],
                f"Least cosine between two gradients of f, worst network: {worst} ({PARALLEL:g} is asked for at the "
                f"smallest eps; {close}). It falls as eps grows ({turns_words}).")]


def _no_saddles(rows: list[dict[str, Any]], settings: Settings) -> Verdict:
    mine = [m for d, m in by_dimension(rows).items() if d > 2][-1]
    first, with_some = mine[0], [r for r in mine if any(r["saddles"])]
    later = (f"from eps = {with_some[0]['eps']:g} on there are some ({sum(map(bool, with_some[0]['saddles']))} of "
             f"{settings['nets']} networks)" if with_some else "there are none at larger eps")
    # A sphere has a maximum: where none is found, the search would have missed saddles too.
    said = AGAINST if any(first["saddles"]) else HOLDS if all(first["maxima"]) else SILENT
    return verdict(
        "For small eps no critical point on the sphere is a saddle", "Deng et al. 2020, Lemma 4.4",
        [said],
        f"d = {first['d']}, eps = {first['eps']:g}: {sum(first['saddles'])} saddles, {sum(first['maxima'])} maxima and "
        f"{sum(first['minima'])} minima of {settings['nets']} networks, by the eigenvalues of the Riemannian Hessian "
        f"where Newton's method settled from {4 * settings['starts']} points each (no saddle, and in each network a "
        f"maximum, is asked for; {said}); {later}. On a circle there is none by dimension.")


def _one_maximum(rows: list[dict[str, Any]], settings: Settings) -> Verdict:
    parts, said = [], []
    few = share(settings["nets"], settings["nets"]).low < LIKELY  # so few networks that all of them are not enough
    for d, mine in by_dimension(rows).items():
        found = share(sum(k == 1 for k in mine[0]["maxima"]), settings["nets"])
        said.append(SILENT if few and found.high >= LIKELY else stands(found, at_least=LIKELY))
        parts.append(f"d = {d}: {told(found)} at eps = {mine[0]['eps']:g}, all networks up to eps = {_threshold(mine)}")
    one = together(*said)
    grows, grows_words = _trends(rows, "maxima", 1)
    return verdict(
        "Below a threshold of eps the sphere has one local maximum, above it the more, the larger eps",
        "Deng et al. 2020, Theorem 5.1", [one, together(one, grows)],
        f"Share of networks with exactly one, {'; '.join(parts)} (Wilson's lower end at {LIKELY:g} or above is asked "
        f"for at the smallest; {one}). The number grows with eps ({grows_words}). Where d > 2 it counts what "
        f"{4 * settings['starts']} searches found.")


def _threshold(mine: list[dict[str, Any]]) -> str:
    """The largest eps up to which every network has one maximum."""
    last = "none"
    for r in mine:
        if any(k != 1 for k in r["maxima"]):
            break
        last = f"{r['eps']:g}"
    return last


def _judge_circle(rows: list[dict[str, Any]], settings: Settings) -> list[Verdict]:
    scales, ratios, nets = settings["scales"], settings["ratios"], settings["circle_nets"]
    smallest = [r for r in rows if r["scale"] == scales[0]]
    widest, largest = [r for r in rows if r["ratio"] == ratios[-1]], [r for r in rows if r["scale"] == scales[-1]]
    regular = plain(all(k == 1 for r in smallest for k in r["maxima"]))
    more, more_words = order(widest, lambda r: r["maxima"], "scale")
    wider, wider_words = order(largest, lambda r: r["maxima"], "ratio")
    verdicts = [verdict(
        "At the smallest input scale the landscape has one maximum even at the largest ratio eps / ||x||; at a fixed "
        "ratio it has the more, the larger the scale, and at a large scale the more, the larger the ratio",
        "Deng et al. 2020, Figure 1", [together(regular, more), together(regular, wider)],
        f"Scale {scales[0]:g}: {sum(k == 1 for r in smallest for k in r['maxima'])} of {len(smallest) * nets} "
        f"landscapes have one maximum (all are asked for, or nothing else counts; {regular}). The number grows with "
        f"the scale at ratio {ratios[-1]:g} ({more_words}; means {_means(widest, lambda r: r['maxima'])}; {more}) and "
        f"with the ratio at scale {scales[-1]:g} ({wider_words}; means {_means(largest, lambda r: r['maxima'])}; "
        f"{wider}).")]
    limit = settings["leave_limit"]
    words = {"fixed": ("The smaller the scale, the fewer steps of one size leave the neighbourhood of a minimum of the "
                       "loss; at a large scale a small ratio helps", f"eta = {settings['eta']:g}"),
             "relative": ("A small scale, or at a large one a small ratio, makes leaving quicker even where steps are "
                          "a share of eps, so that only the landscape differs",
                          f"steps of {SHARE:g} eps")}
    for rule, (claim, setting) in words.items():
        def steps(row: dict[str, Any], rule: str = rule) -> list[float]:
            return list(row["steps"][rule])
        slower, slower_words = _later(widest, steps, "scale")
        later, later_words = _later(largest, steps, "ratio")
        quick = [v for r in smallest for v in steps(r)]
        verdicts.append(verdict(
            claim, "Deng et al. 2020, Figure 1 and Section 5.1.2" + ("" if rule == "fixed" else "; our control"),
            [slower, later],
            f"{setting}, from {NEAR:g} radians beside the lowest minimum on the circle until half of the rise that "
            f"{limit} steps make is done: at ratio {ratios[-1]:g} steps rise with the scale ({slower_words}; medians "
            f"{_medians(widest, steps)}; {slower}), at scale {scales[-1]:g} with the ratio ({later_words}; medians "
            f"{_medians(largest, steps)}; {later}); at scale {scales[0]:g} never more than {max(quick):.0f}. How high "
            "ascent gets is not asked here."))
    return verdicts


def _later(rows: list[dict[str, Any]], steps: Callable[[dict[str, Any]], Sequence[float]], by: str) -> tuple[str, str]:
    """What is said to the claim that steps rise with `by`: nothing where all leave in the first one."""
    said, words = order(rows, steps, by)
    return (SILENT if at_an_end([v for r in rows for v in steps(r)]) else said), words


def _means(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], Sequence[float]]) -> str:
    return ", ".join(f"{sum(value(r)) / len(value(r)):.2f}" for r in rows)


def _medians(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], Sequence[float]]) -> str:
    return ", ".join(f"{median(value(r)):.0f}" for r in rows)


# ---------------------------------------------------------------------- figures

def draw(numbers: Numbers, settings: Settings) -> dict[str, Drawing]:
    return {"landscapes": _draw_landscapes(numbers["circle"], settings),
            "leaving": _draw_leaving(numbers["circle"], settings),
            "spheres": _draw_spheres(numbers["spheres"], settings), "rates": _draw_rates(numbers["rates"], settings)}


def _draw_landscapes(rows: list[dict[str, Any]], settings: Settings) -> Drawing:
    import numpy as np

    from verifier.panels import new_figure
    scales, ratios = settings["scales"], settings["ratios"]
    figure = new_figure(2.25 * len(ratios), 2.4 * len(scales))
    axes = figure.subplots(len(scales), len(ratios), squeeze=False)
    for row in rows:
        axis = axes[scales.index(row["scale"])][ratios.index(row["ratio"])]
        shown = row["picture"]
        loss, side = [list(bytes.fromhex(line)) for line in shown["loss"]], np.linspace(-1.1, 1.1, len(shown["loss"]))
        axis.contourf(side, side, loss, np.linspace(0, 255, 11), cmap="cividis")
        axis.set_aspect("equal")
        turn = np.linspace(0, 2 * np.pi, 200)
        axis.plot(np.cos(turn), np.sin(turn), "w-", linewidth=1)
        path = np.array(shown["path"])
        axis.plot(path[:, 0], path[:, 1], ".-", color="#D55E00", markersize=4, linewidth=1)
        axis.plot(path[0, 0], path[0, 1], "s", color="white", markeredgecolor="black", markersize=6)
        top = np.array(shown["maxima"])
        axis.plot(np.cos(top), np.sin(top), "^", color="#56B4E9", markeredgecolor="black", markersize=7)
        axis.set_title(f"scale {row['scale']:g}, ratio {row['ratio']:g}\nloss {shown['low']:.3g} to "
                       f"{shown['high']:.3g}, {shown['steps']} steps", fontsize=7.5)
        axis.set_xticks([-1, 0, 1])
        axis.set_yticks([-1, 0, 1])
        axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("delta_1 / eps", fontsize=8)
    for line in axes:
        line[0].set_ylabel("delta_2 / eps", fontsize=8)
    return Drawing(figure, (
        "The loss over perturbations of an input with two features (dark: low, bright: high, each panel on its own "
        "scale), the circle of radius eps (white), its local maxima (triangles), and projected ascent (orange, at most "
        f"61 of its points) from beside the lowest minimum on the circle (square), eta = {settings['eta']:g}. One "
        f"two-layer softplus network of {settings['circle_width']} neurons, seed {settings['seed']}; scale is ||x||, "
        "ratio eps / ||x||. The paper's Figure 1 has three scales and three ratios, of which its text names the scale "
        "0.01 and the ratio 10."))


def _draw_leaving(rows: list[dict[str, Any]], settings: Settings) -> Drawing:
    import numpy as np

    from verifier.panels import new_figure
    figure = new_figure(10.0, 3.6)
    axes = figure.subplots(1, 3)
    for k, ratio in enumerate(settings["ratios"]):
        mine = [r for r in rows if r["ratio"] == ratio]
        at = [r["scale"] for r in mine]
        for axis, value in zip(axes, (lambda r: r["maxima"], lambda r: r["steps"]["fixed"],
                                      lambda r: r["steps"]["relative"]), strict=True):
            values = np.array([value(r) for r in mine])
            # Where ratios have the same numbers, the first is seen around those after it.
            axis.plot(at, np.median(values, 1), "osD"[k % 3] + "-", color=PALETTE[k], label=f"ratio {ratio:g}",
                      markersize=11 - 3 * (k % 3), linewidth=6 - 2 * (k % 3))
            axis.fill_between(at, values.min(1), values.max(1), color=PALETTE[k], alpha=0.15, linewidth=0)
    for axis, title in zip(axes, ("local maxima on the circle", f"steps to leave, eta = {settings['eta']:g}",
                                  f"steps to leave, {SHARE:g} eps each"), strict=True):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("input scale ||x||")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("number")
    axes[1].set_ylabel("steps")
    axes[2].set_ylabel("steps")
    axes[0].legend(fontsize=7)
    return Drawing(figure, (
        f"Over {settings['circle_nets']} networks as in the landscapes (median and range; seed {settings['seed']}): "
        f"maxima on the circle, and steps in which ascent from {NEAR:g} radians beside the lowest minimum does half of "
        f"the rise that {settings['leave_limit']} steps make, with steps of one eta and with steps that are a share of "
        "eps."))


def _draw_spheres(rows: list[dict[str, Any]], settings: Settings) -> Drawing:
    from verifier.panels import new_figure
    figure = new_figure(10.5, 3.6)
    axes = figure.subplots(1, 3)
    for k, d in enumerate(sorted({r["d"] for r in rows})):
        mine = sorted((r for r in rows if r["d"] == d), key=lambda r: r["eps"])
        at = [r["eps"] for r in mine]
        colour, mark = PALETTE[k], "os"[k % 2]
        axes[0].plot(at, [sum(r["maxima"]) / len(r["maxima"]) for r in mine], mark + "-", color=colour,
                     label=f"maxima, d = {d}")
        if d > 2:
            axes[0].plot(at, [sum(r["saddles"]) / len(r["saddles"]) for r in mine], "x--", color="#D55E00",
                         label=f"saddles, d = {d}")
        axes[1].plot(at, [sum(n == 1 for n in r["maxima"]) / len(r["maxima"]) for r in mine], mark + "-", color=colour,
                     label=f"networks with one maximum, d = {d}")
        axes[1].plot(at, [sum(r["best"]) / len(r["best"]) for r in mine], mark + "--", color=colour,
                     markerfacecolor="white", label=f"starts that reach the best, d = {d}")
        axes[2].plot(at, [min(r["cosine"]) for r in mine], mark + "-", color=colour, label=f"least cosine, d = {d}")
        axes[2].plot(at, [r["on_sphere"] for r in mine], mark + "--", color=colour, markerfacecolor="white",
                     label=f"ends on the sphere, d = {d}")
    for axis, (title, label) in zip(axes, (("critical points on the sphere", "mean number a network"),
                                           ("one maximum, and who reaches the best", "share"),
                                           ("gradients in the ball; end points", "cosine, share")), strict=True):
        axis.set_xscale("log")
        axis.set_xlabel("eps (inputs of length 1)")
        axis.set_ylabel(label)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6.5, loc="upper left" if axis is axes[0] else "lower left")
    axes[1].set_ylim(-0.55, 1.05)  # room for the legend
    axes[2].set_ylim(-1.9, 1.05)
    return Drawing(figure, (
        f"{settings['nets']} two-layer softplus networks ({settings['circle_width']} neurons at d = 2, "
        f"{settings['width']} at d = {settings['d']}; seed {settings['seed']}). Maxima on the circle by a refined "
        f"grid, on spheres where ascents, descents and Newton's method from {settings['starts']} starts each settled. "
        "Starts are uniform in the ball; least cosine: between two gradients of f at these starts and their "
        "projections; worst network."))


def _draw_rates(found: dict[str, Any], settings: Settings) -> Drawing:
    import numpy as np

    from verifier.panels import new_figure
    figure = new_figure(10.0, 3.6)
    near, long, decay = figure.subplots(1, 3)
    etas = settings["etas"]
    for axis, name, power, words in ((near, "distance", 0.5, "distance from the maximum"),
                                     (long, "steps", -2.0, "steps until there")):
        values = np.array(found[name])
        axis.plot(etas, np.median(values, 1), "o-", color=PALETTE[0], label="median and range over networks")
        axis.fill_between(etas, values.min(1), values.max(1), color=PALETTE[0], alpha=0.2, linewidth=0)
        anchor = float(np.median(values[0]))
        axis.plot(etas, [anchor * (eta / etas[0]) ** power for eta in etas], ":", color="0.4",
                  label=f"claimed order, eta^{power:g}")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("step size eta")
        axis.set_ylabel(words)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    near.set_title("where the slope falls below sqrt(eta)", fontsize=9)
    long.set_title("how soon", fontsize=9)
    for k, row in enumerate(found["shrinking"]):
        at = [s + row["z"] for s in row["shown"]]
        decay.plot(at, row["median"], "-", color=PALETTE[k], label=f"beta = {row['multiple']:g} x curvature")
        if k == 0:
            decay.plot(at, [row["median"][0] * at[0] / v for v in at], ":", color="0.4", label="1 / (z + s)")
    decay.set_xscale("log")
    decay.set_yscale("log")
    decay.set_xlabel("z + s (z: median)")
    decay.set_ylabel("squared distance, median")
    decay.set_title("steps 2 / (beta (s + z))", fontsize=9)
    decay.grid(alpha=0.3)
    decay.legend(fontsize=7)
    return Drawing(figure, (
        f"Ascent from uniform starts in the ball of eps = {settings['rate_eps']:g}: {settings['rate_nets']} networks "
        f"of {settings['width']} neurons, d = {settings['d']}, {settings['rate_starts']} starts each (seed "
        f"{settings['seed'] + 1}). Left and middle: the first point on the sphere whose slope along it is at most "
        "sqrt(eta); of a network's starts the geometric mean of distances and the arithmetic mean of steps" + (
            f" ({found['late']} runs did not come there: they enter with {settings['rate_limit'] + 1} steps and the "
            "distance of their starts)" if found["late"] else "") + ". Right: from there with shrinking "
        f"steps, the first as large as eta = {settings['shrink_from']:g}."))


def table(numbers: Numbers, settings: Settings) -> str:
    lines = [[f"{r['scale']:g}", f"{r['ratio']:g}", f"{r['eps']:g}", f"{sum(r['maxima']) / len(r['maxima']):.2f}",
              f"{sum(k == 1 for k in r['maxima'])} of {len(r['maxima'])}",
              *(_medians([r], lambda r, rule=rule: r["steps"][rule]) for rule in RULES)] for r in numbers["circle"]]
    circle = markdown(["scale", "ratio", "eps", "maxima, mean", "with one", "steps, one eta", "steps, share of eps"],
                      lines, 0)
    lines = []
    for r in numbers["spheres"]:
        mean = {name: f"{sum(r[name]) / len(r[name]):.2f}" for name in ("maxima", "saddles", "minima", "best")}
        lines.append([str(r["d"]), f"{r['eps']:g}", mean["maxima"], mean["saddles"], mean["minima"],
                      f"{sum(k == 1 for k in r['maxima'])} of {len(r['maxima'])}", mean["best"],
                      f"{r['on_sphere']:.2f}", f"{min(r['cosine']):.3f}", f"{r['bounded_away']} of {len(r['maxima'])}"])
    spheres_ = markdown(["d", "eps", "maxima", "saddles", "minima", "with one maximum", "starts at the best",
                         "ends on the sphere", "least cosine", f"abs(y - f) >= {AWAY_FROM_ZERO:g}"], lines, 0)
    return f"Circles (Figure 1):\n\n{circle}\n\nSpheres around inputs of length 1, means over networks:\n\n{spheres_}"


# ---------------------------------------------------------------------- settings

COMMON: Settings = {
    "seed": 0, "scales": [0.01, 1.0, 100.0], "ratios": [0.001, 0.1, 10.0], "eta": 0.02, "rate_eps": 0.1,
    "shrink_from": 1e-3, "multiples": [1.0, 4.0, 8.0],
}
MODES: dict[str, Settings] = {
    "quick": {**COMMON, "circle_nets": 3, "circle_width": 50, "leave_limit": 200, "d": 4, "width": 64, "nets": 4,
              "starts": 8, "ascent_steps": 100, "circle_radii": [0.01, 1.0, 100.0], "radii": [0.01, 1.0, 30.0],
              "rate_nets": 3, "rate_starts": 3, "rate_limit": 5000, "etas": [3e-3, 1e-3, 3e-4], "shrink_steps": 200},
    "default": {**COMMON, "circle_nets": 20, "circle_width": 200, "leave_limit": 1000, "d": 10, "width": 400,
                "nets": 20, "starts": 32, "ascent_steps": 300,
                "circle_radii": [0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0],
                "radii": [0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0], "rate_nets": 10, "rate_starts": 8,
                "rate_limit": 50_000, "etas": [3e-3, 1e-3, 3e-4, 1e-4, 3e-5], "shrink_steps": 3000},
    "paper": {**COMMON, "circle_nets": 50, "circle_width": 1000, "leave_limit": 5000, "d": 20, "width": 2000,
              "nets": 30, "starts": 32, "ascent_steps": 1000,
              "circle_radii": [0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0],
              "radii": [0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0], "rate_nets": 20, "rate_starts": 16,
              "rate_limit": 200_000, "etas": [3e-3, 1e-3, 3e-4, 1e-4, 3e-5], "shrink_steps": 10_000},
}
STUDY = Study(
    name="ascent", title="Dynamics of projected gradient ascent",
    source="Deng, He, Huang and Su, Towards Understanding the Dynamics of the First-Order Adversaries, ICML 2020",
    modes=MODES, measure=measure, draw=draw, judge=judge, table=table)

if __name__ == "__main__":
    sys.exit(run(STUDY))
