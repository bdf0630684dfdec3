"""How soon projected gradient ascent leaves the neighbourhood of a minimum of the loss, on images.

    python benchmarks/studies/escape.py                                             # the digits, a minute or two
    python benchmarks/studies/escape.py --mode mnist --data-dir DIR                 # MNIST on two cores
    python benchmarks/studies/escape.py --mode paper --data-dir DIR [--device cuda] # all of MNIST; was not run

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

from benchmarks.machine import markdown  # noqa: E402
from benchmarks.studies import image_escape  # noqa: E402
from benchmarks.studies.fits import increases, interval, paired, told  # noqa: E402
from benchmarks.studies.study import (  # noqa: E402
    PALETTE,
    Context,
    Drawing,
    Numbers,
    Settings,
    Study,
    Verdict,
    outcome,
    run,
)

RULES, HALF = image_escape.RULES, image_escape.HALF
RULE_WORDS = {"fixed": "one eta", "relative": "share of eps"}

def walk_of(settings: Settings) -> image_escape.Walk:
    steps = settings["steps"]
    return image_escape.Walk(steps, settings["search"], settings["eta"], settings["share"],
                             tuple(places(steps)))


def places(steps: int) -> list[int]:
    """The steps whose losses are drawn."""
    return sorted({round(k * steps / 16) for k in range(17)} | {1, 2})


def measure(settings: Settings, context: Context) -> Numbers:
    from certify.data.registry import load
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
                epochs=settings["epochs"], train_ratio=settings["train_ratio"], walk=walk, device=context.device)
    return {"untrained": untrained, "trained": trained}


# ---------------------------------------------------------------------- verdicts

def judge(numbers: Numbers, settings: Settings) -> list[Verdict]:
    return [*judge_untrained(numbers["untrained"], settings), *judge_trained(numbers["trained"], settings)]


def judge_untrained(rows: list[dict[str, Any]], settings: Settings) -> list[Verdict]:
    scales, ratios = settings["scales"], settings["ratios"]
    verdicts = []
    for rule in RULES:
        mine = [r for r in rows if r["rule"] == rule]
        small, large = ([r for r in mine if r["scale"] == s] for s in (scales[0], scales[-1]))
        middle = [r for r in mine if r["scale"] == scales[len(scales) // 2]]
        easy = min(r["escaped"] for r in small)
        slower = {ratio: increases(*paired((r for r in mine if r["ratio"] == ratio), lambda r: [r["steps"]], "scale"))
                  for ratio in ratios}
        later = increases(*paired(middle, lambda r: [r["steps"]], "ratio"))
        count = sum(s[0] for s in slower.values())
        hard = sum(r["escaped"] for r in large if r["ratio"] == ratios[0]) / settings["seeds"]
        setting = (f"eta = {settings['eta']:g}" if rule == "fixed" else
                   f"steps of {settings['share']:g} eps")
        verdicts.append(Verdict(
            "On images, the smaller the input scale, the fewer steps lead away from a minimum of the loss, at the "
            "smallest for every ratio; at the middle scale a small ratio helps; at the largest even the smallest ratio "
            "is hard" if rule == "fixed" else "On images, scale and ratio matter in this way even where steps are a "
            "share of eps",
            "Deng et al. 2020, Figure 2" + ("" if rule == "fixed" else "; our control"),
            outcome(easy >= 0.5, count == len(ratios), later[0], hard < 0.5),
            f"{setting}, {settings['steps']} steps, {settings['images']} images of {settings['data']}, "
            f"{settings['seeds']} networks: at scale {scales[0]:g} at least {easy:.0%} of images got half of the "
            f"way up; steps rise with the scale for {count} of {len(ratios)} ratios (at ratio {ratios[-1]:g}: "
            f"{slower[ratios[-1]][1]}); at scale {scales[len(scales) // 2]:g} they rise with the ratio ({later[1]}); "
            f"at scale {scales[-1]:g} and ratio {ratios[0]:g} {hard:.0%} got there (below half is hard)"))
    return verdicts


def effort(rows: list[dict[str, Any]], scale: float, seed: int, epoch: int, rule: str) -> float:
    """The mean over ratios of log2(1 + steps): doublings."""
    mine = [r for r in rows if (r["scale"], r["seed"], r["epoch"], r["rule"]) == (scale, seed, epoch, rule)]
    return sum(math.log2(1 + r["steps"]) for r in mine) / len(mine)


def judge_trained(rows: list[dict[str, Any]], settings: Settings) -> list[Verdict]:
    scales, epochs, seeds = settings["train_scales"], settings["epochs"], range(settings["seeds"])
    few, many = epochs[1], epochs[-1]
    verdicts = []
    for rule in RULES:
        rise = {s: interval([effort(rows, s, k, many, rule) - effort(rows, s, k, few, rule) for k in seeds])
                for s in scales}
        early = [r["escaped"] for r in rows if r["scale"] == scales[0] and r["epoch"] == few and r["rule"] == rule]
        easy = sum(early) / len(early)
        parts = [easy >= 0.5, rise[scales[0]]["low"] > 0]
        beside = ""
        if len(scales) > 1:
            more = interval([(effort(rows, scales[-1], k, many, rule) - effort(rows, scales[-1], k, few, rule))
                             - (effort(rows, scales[0], k, many, rule) - effort(rows, scales[0], k, few, rule))
                             for k in seeds])
            parts.append(more["low"] > 0)
            beside = (f"; at scale {scales[-1]:g} it rose by {told(rise[scales[-1]])}, a difference of {told(more)}, "
                      "which has to be above zero")
        worth = [r for r in rows if r["scale"] == scales[0] and r["epoch"] == many and r["rule"] == rule]
        verdicts.append(Verdict(
            "At a small scale leaving is still easy after few epochs of adversarial training and clearly harder after "
            "many, the more so at a large scale" if rule == "fixed" else "Training makes leaving harder in this way "
            "even where steps are a share of eps, however small the gradient",
            "Deng et al. 2020, Figure 3" + ("" if rule == "fixed" else "; our control"), outcome(*parts),
            f"Scale {scales[0]:g}: after {few} epochs {easy:.0%} of images got half of the way up within "
            f"{settings['steps']} steps (at least half is asked for); from epoch {few} to {many} log2(1 + "
            f"steps), mean over ratios, rose by {told(rise[scales[0]])} (95 % interval over {len(seeds)} trainings; "
            f"above zero is asked for){beside}. The networks then keep "
            f"{sum(r['clean'] for r in worth) / len(worth):.0%} of test labels, under the attack of training "
            f"{sum(r['pgd'] for r in worth) / len(worth):.0%}"))
    return verdicts


# ---------------------------------------------------------------------- figures

def draw(numbers: Numbers, settings: Settings) -> dict[str, Drawing]:
    return {"untrained": draw_untrained(numbers["untrained"], settings),
            "trained": draw_trained(numbers["trained"], settings)}


def draw_untrained(rows: list[dict[str, Any]], settings: Settings) -> Drawing:
    scales = settings["scales"]
    return draw_curves(
        rows, settings, settings["ratios"], [(f"scale {s:g}", {"scale": s}) for s in scales],
        f"Untrained convolutional networks with Xavier weights on {settings['data']}, inputs times a scale (columns), "
        "eps = ratio x mean ||x||_2. Projected ascent from where descent ended: the loss as a share of the way to the "
        f"highest that was found in the ball. Median over {settings['images']} images, mean over "
        f"{settings['seeds']} networks (seeds from 0). Above: eta = {settings['eta']:g} at every scale; "
        f"below: steps of {settings['share']:g} eps.")


def draw_trained(rows: list[dict[str, Any]], settings: Settings) -> Drawing:
    return draw_curves(
        rows, settings, settings["train_ratios"], columns_of(settings),
        f"As before, after epochs of adversarial training on {settings['data']} (PGD in l_2 with radius "
        f"{settings['train_ratio']:g} x mean ||x||_2; PyTorch's initial weights), by scale and epoch (columns). Median "
        f"over {settings['images']} test images, mean over {settings['seeds']} trainings. Above: eta = "
        f"{settings['eta']:g}; below: steps of {settings['share']:g} eps.")


def columns_of(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """What is told along training, with the rows that belong to it."""
    return [(f"scale {s:g}, {'untrained' if e == 0 else f'{e} epochs'}", {"scale": s, "epoch": e})
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
    return "\n\n".join(f"{title}, steps until half of the way up (mean over networks of medians over images; "
                       f"{settings['steps'] + 1} stands for not within them):\n\n{_steps(names, ratios, rows)}"
                       for title, names, ratios, rows in parts)


def _steps(names: Sequence[str], ratios: Sequence[float], columns: Sequence[Sequence[dict[str, Any]]]) -> str:
    lines = [[RULE_WORDS[rule], f"{ratio:g}", *(f"{sum(mine) / len(mine):.0f}" for rows in columns
              for mine in [[r["steps"] for r in rows if r["rule"] == rule and r["ratio"] == ratio]])]
             for rule in RULES for ratio in ratios]
    return markdown(["steps", "ratio", *names], lines, 1)


# ---------------------------------------------------------------------- settings

COMMON: Settings = {"scales": [0.1, 1.0, 10.0], "eta": 1.0, "share": 0.05, "train_ratio": 0.1}
RATIOS = [0.001, 0.01, 0.1, 1.0, 10.0]
MODES: dict[str, Settings] = {
    "quick": {**COMMON, "data": "digits", "train_images": 200, "test_images": 20, "images": 6, "ratios": [0.01, 1.0],
              "seeds": 2, "steps": 20, "search": 10, "train_scales": [0.1, 10.0], "train_ratios": [0.1],
              "epochs": [0, 1, 2]},
    "default": {**COMMON, "data": "digits", "train_images": 1437, "test_images": 360, "images": 32, "ratios": RATIOS,
                "seeds": 3, "steps": 100, "search": 50, "train_scales": [0.1, 10.0], "train_ratios": RATIOS,
                "epochs": [0, 3, 30]},
    "mnist": {**COMMON, "data": "mnist", "train_images": 5000, "test_images": 1000, "images": 32, "ratios": RATIOS,
              "seeds": 3, "steps": 100, "search": 50, "train_scales": [0.1, 10.0], "train_ratios": RATIOS,
              "epochs": [0, 2, 12]},
    "paper": {**COMMON, "data": "mnist", "train_images": 60_000, "test_images": 2000, "images": 200, "ratios": RATIOS,
              "seeds": 3, "steps": 500, "search": 200, "train_scales": [0.1, 1.0, 10.0], "train_ratios": RATIOS,
              "epochs": [0, 3, 50]},
}
STUDY = Study(
    name="escape", title="Leaving minima of the loss on images",
    source="Deng, He, Huang and Su, Towards Understanding the Dynamics of the First-Order Adversaries, ICML 2020",
    modes=MODES, measure=measure, draw=draw, judge=judge, table=table)

if __name__ == "__main__":
    sys.exit(run(STUDY))
