"""How soon projected gradient ascent leaves the neighbourhood of a minimum of the loss, on images.

    python benchmarks/studies/escape.py                                             # the digits, a minute or two
    python benchmarks/studies/escape.py --mode mnist --data-dir DIR                 # MNIST on two cores
    python benchmarks/studies/escape.py --mode paper --data-dir DIR [--device cuda] # all of MNIST

Figures 2 and 3 of Deng et al. 2020: the loss along ascents that begin beside a minimum, for input scales and ratios
eps / ||x||, in convolutional networks at initialisation and after epochs of adversarial training. The scales and the
ends of the ratios are named in the paper's text; its step sizes stand in a supplement that is not at hand.

Ascent has two rules of steps (`image_escape`). With one eta for all inputs, as in the paper, a smaller input scale at
the same ratio makes the ball smaller against the step, which alone makes leaving quicker; steps that are a share of eps
take that effect away and leave what the landscape does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.machine import markdown  # noqa: E402
from benchmarks.studies import image_escape  # noqa: E402
from benchmarks.studies.claims import (  # noqa: E402
    AGAINST,
    HOLDS,
    OPEN,
    SILENT,
    stands,
    together,
    verdict,
)
from benchmarks.studies.fits import SHARE, interval, told, trend  # noqa: E402
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

RULES, HALF = image_escape.RULES, image_escape.HALF
RULE_WORDS = {"fixed": "one eta", "relative": "share of eps"}
LEARNT = 0.5  # of the labels: below it a network was not trained to speak of
EASY = 0.5  # of images: leaving is easy where more of them get half of the way up, hard where fewer do


def walk_of(settings: Settings) -> image_escape.Walk:
    steps = settings["steps"]
    return image_escape.Walk(steps, settings["search"], settings["eta"], settings["share"],
                             tuple(places(steps)))


def places(steps: int) -> list[int]:
    """The steps whose losses are drawn."""
    return sorted({round(k * steps / 16) for k in range(17)} | {1, 2})


def check(settings: Settings) -> None:
    """SystemExit for settings of which no verdict could be given."""
    ascending(settings, 3, "scales", "ratios", "epochs")  # with two there is no trend, and no few and many epochs
    ascending(settings, 2, "train_scales")
    ascending(settings, 1, "train_ratios")
    positive(settings, "scales", "ratios", "train_scales", "train_ratios", "eta", "share", "train_ratio", "lr",
             "batch_size", "steps", "search", "images", "seeds", "train_images", "test_images")
    required(settings["epochs"][0] == 0, settings, "epochs", "0 as the first, before training")


def measure(settings: Settings, context: Context) -> Numbers:
    from certify.data.registry import load
    check(settings)
    walk = walk_of(settings)
    data = load(settings["data"], context.data_dir).first(settings["train_images"], settings["test_images"])
    context.tell(f"{data.name}, untrained")
    untrained = image_escape.at_initialisation(
        data, scales=settings["scales"], ratios=settings["ratios"], seeds=settings["seeds"],
        images=settings["images"], walk=walk, device=context.device)
    trained = []
    for scale in settings["train_scales"]:
        for seed in range(settings["seeds"]):
            context.tell(f"training at scale {scale:g}, seed {seed}")
            trained += image_escape.in_training(
                data, scale=scale, ratios=settings["train_ratios"], seed=seed, images=settings["images"],
                epochs=settings["epochs"], train_ratio=settings["train_ratio"], lr=settings["lr"],
                batch_size=settings["batch_size"], walk=walk, device=context.device)
    return {"untrained": untrained, "trained": trained}


# ---------------------------------------------------------------------- verdicts

def judge(numbers: Numbers, settings: Settings) -> list[Verdict]:
    return [*judge_untrained(numbers["untrained"], settings), *judge_trained(numbers["trained"], settings)]


def of_rule(rule: str, settings: Settings) -> str:
    return f"eta = {settings['eta']:g}" if rule == "fixed" else f"steps of {settings['share']:g} eps"


def per_network(rows: Iterable[dict[str, Any]], settings: Settings) -> list[list[dict[str, Any]]]:
    """The rows of each network, which depend on each other."""
    rows = list(rows)
    return [[r for r in rows if r["seed"] == seed] for seed in range(settings["seeds"])]


def order(rows: Iterable[dict[str, Any]], by: str, settings: Settings) -> tuple[str, str]:
    """What is said to the claim that steps rise with `by`, one run a network, and the words for it."""
    runs = [([r[by] for r in mine], [r["steps"] for r in mine]) for mine in per_network(rows, settings)]
    if image_escape.at_an_end([v for _, steps in runs for v in steps], settings["steps"]):
        return SILENT, f"all one step, or all more than {settings['steps']}"
    found = trend(runs)
    return stands(found, above=0), f"Spearman's rho {told(found)}"


def enough(ratios: Sequence[float], of: Sequence[float]) -> bool:
    """Whether the ratios at which something can be told are half of all or more: a claim is made for all of them."""
    return len(ratios) * 2 >= len(of)


def judge_untrained(rows: list[dict[str, Any]], settings: Settings) -> list[Verdict]:
    scales, ratios, limit = settings["scales"], settings["ratios"], settings["steps"]
    one = 1 / settings["images"]
    verdicts = []
    for rule in RULES:
        mine = [r for r in rows if r["rule"] == rule]
        small, middle, large = ([r for r in mine if r["scale"] == s]
                                for s in (scales[0], scales[len(scales) // 2], scales[-1]))
        easy = interval([min(r["escaped"] for r in net) for net in per_network(small, settings)], SHARE, one)
        apart = [ratio for ratio in ratios
                 if not image_escape.at_an_end([r["steps"] for r in mine if r["ratio"] == ratio], limit)]
        by_scale = {ratio: order((r for r in mine if r["ratio"] == ratio), "scale", settings) for ratio in apart}
        slower = together(*(said for said, _ in by_scale.values())) if enough(apart, ratios) else SILENT
        later, later_words = order(middle, "ratio", settings)
        few, many = (interval([r["escaped"] for r in of if r["ratio"] == ratios[0]], SHARE, one)
                     for of in (large, small))
        # Hard at the largest scale alone: where nothing is left at any scale, the scale is not what makes it hard.
        hard = together(stands(few, below=EASY), stands(many, above=EASY))
        # Of steps of one eta the claim is that they lead away at the smallest scale; steps that are a share of eps
        # cross any ball, so that this says nothing of them.
        gate = HOLDS if rule == "relative" else stands(easy, above=EASY)
        asked = (f"at scale {scales[0]:g} {told(easy)} of images got half of the way up at the worst ratio (more than "
                 f"half is asked for, or nothing else counts; {gate}); " if rule == "fixed" else "")
        each = "".join(f"; ratio {ratio:g}: {words}" for ratio, (_, words) in by_scale.items())
        verdicts.append(verdict(
            "On images leaving a minimum of the loss is easy at the smallest input scale, whatever the ratio; at a "
            "fixed ratio the steps rise with the scale, at the middle scale with the ratio; at the largest scale even "
            "the smallest ratio is hard" if rule == "fixed" else "On images the steps that lead away from a minimum of "
            "the loss rise with scale and ratio in this way, and the largest scale alone is hard, even where steps are "
            "a share of eps",
            "Deng et al. 2020, Figure 2" + ("" if rule == "fixed" else "; our control"),
            [together(gate, said) for said in (slower, later, hard)],
            f"{of_rule(rule, settings)}, {limit} steps, {settings['images']} images of {settings['data']}, "
            f"{settings['seeds']} networks, intervals over networks: {asked}steps rise with the scale at "
            f"{sum(said == HOLDS for said, _ in by_scale.values())} of {len(apart)} ratios that can tell ({slower}"
            f"{each}; {len(ratios) - len(apart)} of {len(ratios)} take one step, or more than {limit}, at every "
            f"scale); at scale {scales[len(scales) // 2]:g} they rise with the ratio ({later}; {later_words}); at "
            f"ratio {ratios[0]:g} {told(few)} of images got there at scale {scales[-1]:g} and {told(many)} at scale "
            f"{scales[0]:g} (hard: less than half, and more than half; {hard})."))
    return verdicts


@dataclass(frozen=True)
class Change:
    """What training changed under one rule of steps: rows by (scale, epoch, seed, ratio), from epoch `few` to `many`.

    Counts end at limit + 1. Where one did so already after few epochs no rise can be seen, so that its ratio is not
    compared; where one does after many, its rise is at least what is seen.
    """

    steps: dict[tuple[float, int, int, float], float]
    few: int
    many: int
    seeds: int
    limit: int

    def ends(self, scale: float, epoch: int, ratios: Sequence[float]) -> int:
        """How many counts, of one a ratio and training, end at the limit."""
        return sum(self.steps[scale, epoch, k, ratio] > self.limit for k in range(self.seeds) for ratio in ratios)

    def free(self, scales: Sequence[float], ratios: Sequence[float]) -> list[float]:
        return [ratio for ratio in ratios if not any(self.ends(s, self.few, [ratio]) for s in scales)]

    def rise(self, scale: float, ratios: Sequence[float]) -> list[float]:
        """By training: the mean over ratios of the rise of log2(1 + steps), in doublings."""
        def doublings(epoch: int, seed: int) -> float:
            return sum(math.log2(1 + self.steps[scale, epoch, seed, ratio]) for ratio in ratios)
        return [(doublings(self.many, k) - doublings(self.few, k)) / len(ratios) for k in range(self.seeds)]


def judge_harder(change: Change, scale: float, ratios: Sequence[float]) -> tuple[str, str]:
    """What is said to the claim that leaving takes more steps after many epochs than after few."""
    free = change.free([scale], ratios)
    if not enough(free, ratios):
        return SILENT, f"only {len(free)} of {len(ratios)} ratios can tell"
    found = interval(change.rise(scale, free))
    said = stands(found, above=0)
    if said == AGAINST and change.ends(scale, change.many, free):
        said = OPEN  # what is seen of a rise is its least
    return said, f"{told(found)} over {len(free)} of {len(ratios)} ratios"


def judge_more(change: Change, small: float, large: float, ratios: Sequence[float]) -> tuple[str, str]:
    """What is said to the claim that steps rise more at the large scale than at the small one."""
    free = change.free([small, large], ratios)
    if not enough(free, ratios):
        return SILENT, f"only {len(free)} of {len(ratios)} ratios can tell"
    if change.ends(small, change.many, free):
        return SILENT, f"at scale {small:g} counts that could rise end at the limit"
    found = interval([b - a for a, b in zip(change.rise(small, free), change.rise(large, free), strict=True)])
    said = stands(found, above=0)
    if said == AGAINST and change.ends(large, change.many, free):
        said = OPEN
    return said, f"{told(found)} over {len(free)} of {len(ratios)} ratios"


def judge_trained(rows: list[dict[str, Any]], settings: Settings) -> list[Verdict]:
    scales, epochs, ratios, limit = (settings[k] for k in ("train_scales", "epochs", "train_ratios", "steps"))
    small, large, few, many, seeds = scales[0], scales[-1], epochs[1], epochs[-1], settings["seeds"]
    verdicts = []
    for rule in RULES:
        mine = [r for r in rows if r["rule"] == rule]
        change = Change({(r["scale"], r["epoch"], r["seed"], r["ratio"]): r["steps"] for r in mine}, few, many, seeds,
                        limit)
        early = [r for r in mine if r["scale"] == small and r["epoch"] == few]
        easy = interval([sum(r["escaped"] for r in net) / len(net) for net in per_network(early, settings)], SHARE,
                        1 / settings["images"] / len(ratios))
        harder, harder_words = judge_harder(change, small, ratios)
        more, more_words = judge_more(change, small, large, ratios)
        gate = HOLDS if rule == "relative" else stands(easy, above=EASY)
        asked = (f"after epoch {few} {told(easy)} of images got half of the way up (more than half is asked for, or "
                 f"nothing else counts; {gate}); " if rule == "fixed" else "")
        ends = ", ".join(f"{change.ends(s, e, ratios)} at scale {s:g} after epoch {e}"
                         for s in (small, large) for e in (few, many))
        worth = [r for r in mine if r["scale"] == small and r["epoch"] == many]
        clean = sum(r["clean"] for r in worth) / len(worth)
        verdicts.append(verdict(
            "At a small scale leaving is still easy after few epochs of adversarial training and clearly harder after "
            "many, the more so at a large scale" if rule == "fixed" else "Many epochs of adversarial training make "
            "leaving harder than few, at a small scale and the more so at a large one, even where steps are a share of "
            "eps, however small the gradient",
            "Deng et al. 2020, Figure 3" + ("" if rule == "fixed" else "; our control"),
            [together(gate, said) if clean >= LEARNT else SILENT for said in (harder, more)],
            f"{of_rule(rule, settings)}, {limit} steps, intervals over {seeds} trainings. Scale {small:g}: {asked}rise "
            f"of log2(1 + steps) from epoch {few} to {many}, mean over ratios: {harder_words} (above zero is asked "
            f"for; {harder}); at scale {large:g}, less that: {more_words} (above zero is asked for; {more}). Ratios "
            f"can tell where after epoch {few} no count ends at {limit + 1}, half of them are asked for; of "
            f"{seeds * len(ratios)} counts there end {ends}. The networks then keep "
            f"{clean:.0%} of test labels (at least {LEARNT:.0%} is asked for, or training has not begun to tell), "
            f"under the attack of training {sum(r['pgd'] for r in worth) / len(worth):.0%}."))
    return verdicts


# ---------------------------------------------------------------------- figures

def draw(numbers: Numbers, settings: Settings) -> dict[str, Drawing]:
    return {"untrained": draw_untrained(numbers["untrained"], settings),
            "trained": draw_trained(numbers["trained"], settings)}


def draw_untrained(rows: list[dict[str, Any]], settings: Settings) -> Drawing:
    scales = settings["scales"]
    return draw_curves(
        rows, settings, settings["ratios"], [(f"scale {s:g}", {"scale": s}) for s in scales],
        f"Untrained convolutional networks ({image_escape.MODEL}) with Xavier weights on {settings['data']}, inputs "
        "times a scale (columns), eps = ratio x mean ||x||_2. Projected ascent from where descent ended: the loss as a "
        "share of the way to the highest that was found in the ball. Median over "
        f"{settings['images']} images, mean over {settings['seeds']} networks (seeds from 0). Above: eta = "
        f"{settings['eta']:g} at every scale; below: steps of {settings['share']:g} eps.")


def draw_trained(rows: list[dict[str, Any]], settings: Settings) -> Drawing:
    return draw_curves(
        rows, settings, settings["train_ratios"], columns_of(settings),
        f"As before ({image_escape.MODEL}), after epochs of adversarial training on {settings['data']} (PGD in l_2 "
        f"with radius {settings['train_ratio']:g} x mean ||x||_2, Adam at {settings['lr']:g}; PyTorch's initial "
        "weights), by scale and epoch "
        f"(columns). Median over {settings['images']} test images, mean over {settings['seeds']} trainings. Above: "
        f"eta = {settings['eta']:g}; below: steps of {settings['share']:g} eps.")


def columns_of(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """What is told along training, with the rows that belong to it."""
    return [(f"scale {s:g}, {'untrained' if e == 0 else f'epoch {e}'}", {"scale": s, "epoch": e})
            for s in settings["train_scales"] for e in settings["epochs"]]


def fits_to(row: dict[str, Any], chosen: dict[str, Any]) -> bool:
    return all(row[name] == value for name, value in chosen.items())


def draw_curves(rows: list[dict[str, Any]], settings: Settings, ratios: Sequence[float],
                 columns: Sequence[tuple[str, dict[str, Any]]], caption: str) -> Drawing:
    import numpy as np

    from verifier.panels import new_figure
    figure = new_figure(max(8.0, 1.0 + 1.45 * len(columns)), 4.6)
    axes = figure.subplots(len(RULES), len(columns), sharex=True, sharey=True, squeeze=False)
    at = places(settings["steps"])
    for line, rule in zip(axes, RULES, strict=True):
        for axis, (title, chosen) in zip(line, columns, strict=True):
            for k, ratio in enumerate(ratios):
                mine = [r["middle"] for r in rows if r["rule"] == rule and r["ratio"] == ratio
                        and fits_to(r, chosen)]
                axis.plot(at, np.mean(mine, 0), color=PALETTE[k], marker="osD^v"[k % 5], markevery=3, markersize=4,
                          linewidth=1.2, label=f"ratio {ratio:g}")
            axis.axhline(HALF, color="0.6", linestyle=":", linewidth=0.8)
            axis.set_title(title, fontsize=8)
            axis.grid(alpha=0.3)
            axis.tick_params(labelsize=7)
        line[0].set_ylabel(f"share of the way up\n({RULE_WORDS[rule]})", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    axes[0][0].legend(fontsize=6.5)
    return Drawing(figure, caption)


def table(numbers: Numbers, settings: Settings) -> str:
    parts = [("Untrained", [f"scale {s:g}" for s in settings["scales"]], settings["ratios"],
              [[row for row in numbers["untrained"] if row["scale"] == s] for s in settings["scales"]])]
    columns = columns_of(settings)
    parts.append(("Along training", [title for title, _ in columns], settings["train_ratios"],
                  [[row for row in numbers["trained"] if fits_to(row, chosen)] for _, chosen in columns]))
    return "\n\n".join(f"{title}, steps until half of the images are half of the way up (mean over networks; "
                       f"{settings['steps'] + 1} stands for not within them):\n\n{_steps(names, ratios, rows)}"
                       for title, names, ratios, rows in parts)


def _steps(names: Sequence[str], ratios: Sequence[float], columns: Sequence[Sequence[dict[str, Any]]]) -> str:
    lines = [[RULE_WORDS[rule], f"{ratio:g}", *(f"{sum(mine) / len(mine):.0f}" for rows in columns
              for mine in [[r["steps"] for r in rows if r["rule"] == rule and r["ratio"] == ratio]])]
             for rule in RULES for ratio in ratios]
    return markdown(["steps", "ratio", *names], lines, 1)


# ---------------------------------------------------------------------- settings

COMMON: Settings = {"scales": [0.1, 1.0, 10.0], "eta": 1.0, "share": 0.05, "train_ratio": 0.1, "batch_size": 64}
RATIOS = [0.001, 0.01, 0.1, 1.0, 10.0]
MODES: dict[str, Settings] = {
    "quick": {**COMMON, "data": "digits", "train_images": 200, "test_images": 20, "images": 6,
              "ratios": [0.01, 0.1, 1.0], "seeds": 2, "steps": 20, "search": 10, "train_scales": [0.1, 10.0],
              "train_ratios": [0.1], "lr": 0.002, "epochs": [0, 1, 2]},
    "default": {**COMMON, "data": "digits", "train_images": 1437, "test_images": 360, "images": 32, "ratios": RATIOS,
                "seeds": 5, "steps": 100, "search": 50, "train_scales": [0.1, 10.0], "train_ratios": RATIOS,
                "lr": 0.002, "epochs": [0, 3, 30]},
    "mnist": {**COMMON, "data": "mnist", "train_images": 2000, "test_images": 500, "images": 32, "ratios": RATIOS,
              "seeds": 5, "steps": 100, "search": 30, "train_scales": [0.1, 10.0], "train_ratios": RATIOS,
              "lr": 0.001, "epochs": [0, 3, 30]},
    "paper": {**COMMON, "data": "mnist", "train_images": 60_000, "test_images": 2000, "images": 200, "ratios": RATIOS,
              "seeds": 3, "steps": 500, "search": 200, "train_scales": [0.1, 1.0, 10.0], "train_ratios": RATIOS,
              "lr": 0.001, "epochs": [0, 3, 50]},
}
STUDY = Study(
    name="escape", title="Leaving minima of the loss on images",
    source="Deng, He, Huang and Su, Towards Understanding the Dynamics of the First-Order Adversaries, ICML 2020",
    modes=MODES, measure=measure, draw=draw, judge=judge, table=table)

if __name__ == "__main__":
    sys.exit(run(STUDY))
