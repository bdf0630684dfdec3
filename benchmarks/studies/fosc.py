"""FOSC and adversarial strength: Figures 1 to 3 of Wang et al. (ICML 2019, arXiv:2112.08304) with our own engine.

    python benchmarks/studies/fosc.py                                            # the digits, minutes on one core
    python benchmarks/studies/fosc.py --mode paper --data-dir data --device cuda      # CIFAR-10, hours on a GPU
    python benchmarks/studies/fosc.py --mode paper --data-dir data --device cuda --set data=mnist --set model=wang4 \\
        --set eps=0.3 --set epochs=50 --set milestones=[20,40] --set look_at=[4,25,42] --set fgsm_epochs=8

Networks are trained on PGD with several step sizes, several numbers of steps, and with FGSM in the first epochs. FOSC
and loss of training examples are taken where a training's own attack ends on the network after an epoch; robustness is
the share of test examples that keep their label where PGD ends. Mode `paper` has the paper's settings (augmentation,
which it does not name, is that of the data set). On the digits the schedule is the paper's with half the epochs and
Adam, and eps is a round number for which PGD leaves about half of the test examples their labels, as in the paper
(44 %).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import stats  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import markdown  # noqa: E402
from benchmarks.studies.claims import AGAINST, SILENT, plain, stands, together, verdict  # noqa: E402
from benchmarks.studies.convergence import (  # noqa: E402
    Reached,
    distances,
    distribution,
    grid,
    required_epochs,
    short,
    summary,
    trajectory,
)
from benchmarks.studies.fits import RANK, SHARE, Interval, interval, rank_correlation, rank_grain  # noqa: E402
from benchmarks.studies.study import (  # noqa: E402
    MNIST,
    Context,
    Drawing,
    Numbers,
    Settings,
    Study,
    Verdict,
    different,
    required,
    run,
)
from benchmarks.training import spread  # noqa: E402
from certify import TrainingData, TrainSettings, train  # noqa: E402
from certify.data.registry import load  # noqa: E402
from certify.measure import ATTACK_SEED  # noqa: E402
from verifier.panels import new_figure  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINED = ("data", "model", "eps", "epochs", "batch_size", "optimiser", "lr", "lr_factor", "weight_decay", "milestones")
LINES = 20            # examples that are drawn one by one, as in the paper
LEAST = 10            # examples of a group of equal width: smaller ones say nothing
NEARLY_ALL = 0.9      # of the examples; and of the rank correlation with the step, which is 1 where every step rises
TOWARDS_ZERO = 0.1    # of where it began: as far as a median must come
# Of the test examples. The paper calls 2.38 points an improvement (Dynamic on Standard under PGD-20, CIFAR-10): what is
# "very similar" differs by less.
ALIKE = 0.02
SAME = 0.1            # the largest difference of cumulative shares of distributions that are almost the same
KOLMOGOROV = 1.36     # times sqrt(2 / n): what samples of n from one distribution exceed once in twenty times
ROUNDED = 1e-9        # 12 steps of 1/6 are as far as 2
BANDS = (0.1, 0.5, 0.9)  # quantiles along the steps
MIDDLE = (0.5, 0.25)  # the step sizes that the paper finds best
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all
STYLES = ("-", "--", "-.", ":")
UNITS = {"fosc": "FOSC, nats", "loss": "cross-entropy, nats"}
PLACE = "Wang et al. 2019, "


class Training(NamedTuple):
    """PGD from a random start, `steps` of `size` eps each, in the first epochs FGSM; or PGD as an attack that tests."""

    steps: int
    size: float
    fgsm: int = 0

    @property
    def name(self) -> str:
        return f"{f'FGSM to epoch {self.fgsm}, ' if self.fgsm else ''}PGD-{self.steps}, {size_name(self.size)}"


def size_name(share: float) -> str:
    """eps/4 for a quarter."""
    parts = round(1 / share)
    exact = math.isclose(parts * share, 1.0, rel_tol=1e-6)
    return (f"eps/{parts}" if parts > 1 else "eps") if exact else f"{share:g} eps"


def by_size(s: Settings) -> list[Training]:
    return [Training(s["size_steps"], size) for size in s["step_sizes"]]


def by_steps(s: Settings) -> list[Training]:
    return [Training(steps, s["step_size"]) for steps in s["steps"]]


def by_stage(s: Settings) -> list[Training]:
    """Those whose epochs are looked at: a good step size, a bad one, and the good one after FGSM."""
    good, bad = s["stage_sizes"]
    return [Training(s["stage_steps"], good), Training(s["stage_steps"], bad),
            Training(s["stage_steps"], good, s["fgsm_epochs"])]


def stage_attacks(s: Settings) -> list[Training]:
    return [Training(steps, s["stage_sizes"][0]) for steps in (s["stage_steps"], s["size_steps"])]


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True, eq=False)
class Seen:
    """What is measured of one trained network. epochs: its own attack on training examples, after an epoch; robust:
    the share of test examples that stand an attack; path: the attack of training on test examples, step by step."""

    clean: float
    epochs: Mapping[int, Reached]
    robust: Mapping[Training, float]
    path: Reached | None


def check(s: Settings) -> None:
    """Before hours of work. Raises SystemExit."""
    sizes = s["step_sizes"]
    required(different(s["seeds"], 1), s, "seeds", "one or more, all different")
    required(different(sizes, 4) and set(MIDDLE) <= set(sizes) and 0 < min(sizes) < min(MIDDLE)
             and max(sizes) > max(MIDDLE), s, "step_sizes", "different ones, of them 0.5, 0.25, a larger and a smaller")
    required(different(s["steps"], 2) and min(s["steps"]) >= 1, s, "steps", "two or more numbers of steps")
    required(len(s["stage_sizes"]) == 2 and different(s["stage_sizes"], 2) and min(s["stage_sizes"]) > 0, s,
             "stage_sizes", "two step sizes, the good one first")
    for name, least in (("size_steps", 1), ("stage_steps", 2), ("groups", 3), ("examples", 2)):
        required(s[name] >= least, s, name, f"{least} or more")
    required_epochs(s, "look_at")
    required(1 <= s["fgsm_epochs"] < s["epochs"], s, "fgsm_epochs", f"1 to {s['epochs'] - 1}")
    required(s["grouping"] in ("count", "width"), s, "grouping", "count or width")


def measure(s: Settings, context: Context) -> Numbers:
    check(s)
    data = load(s["data"], context.data_dir).first(s["train_examples"] or None, s["test_examples"] or None)
    attacks: dict[Training, dict[Training, None]] = {}
    for group, tests in ((by_size(s), by_size(s)), (by_steps(s), by_steps(s)), (by_stage(s), stage_attacks(s))):
        for training in group:
            attacks.setdefault(training, {}).update(dict.fromkeys(tests))
    seen: dict[tuple[Training, int], Seen] = {}
    for seed in s["seeds"]:
        for training, tests in attacks.items():
            seen[training, seed] = one = trained(training, seed, list(tests), s, data, context)
            context.tell(f"seed {seed}  {training.name}  clean {one.clean:.3f}  robust {min(one.robust.values()):.3f}")
    paths = [one.path for one in seen.values() if one.path is not None]
    return {"examples": {"train": len(data.train), "shown": min(s["examples"], len(data.train)),
                         "test": len(data.test)},
            "strength": strength([path.after(-1) for path in paths], s), "paths": along(paths),
            "sizes": swept(by_size(s), seen, s), "steps": swept(by_steps(s), seen, s), "stages": staged(seen, s)}


def trained(training: Training, seed: int, attacks: Sequence[Training], s: Settings, data: TrainingData,
            context: Context) -> Seen:
    """One network, and what is to be known of it."""
    shown = data.train.take(slice(0, s["examples"]))
    where: dict[str, Any] = {"eps": s["eps"], "clip": data.clip, "seed": ATTACK_SEED}
    wanted = {*s["look_at"], s["epochs"]}
    epochs: dict[int, Reached] = {}

    def look(epoch: int, model: Any) -> None:
        if epoch in wanted:
            own = {"steps": 1, "step_size": 1.0, "random": False} if epoch <= training.fgsm else \
                {"steps": training.steps, "step_size": training.size}
            epochs[epoch] = distribution(model, shown, **where, **own)

    method = {"steps": training.steps, "step_size": training.size}
    if training.fgsm:
        method["first"] = training.fgsm / s["epochs"]
    given = {name: s[name] for name in TRAINED} | {"milestones": tuple(s["milestones"])}
    settings = TrainSettings(method="fgsm-pgd" if training.fgsm else "pgd", method_settings=method, seed=seed,
                             validation=0, keep="last", **given)
    model = train(settings, data=data, device=context.device, look=look, worth=()).model
    clean = distribution(model, data.test, **where, steps=0, step_size=1.0, random=False).accuracy
    robust = {test: distribution(model, data.test, **where, steps=test.steps, step_size=test.size).accuracy
              for test in attacks}
    path = trajectory(model, data.test, **where, steps=training.steps, step_size=training.size) \
        if training == by_stage(s)[0] else None
    return Seen(clean, epochs, robust, path)


def strength(ends: Sequence[Reached], s: Settings) -> Numbers:
    """Figure 1a. Groups of equal count are those of one network each, averaged over networks; groups of equal width
    hold the examples of all networks together. ranks: of each network, how accuracy and loss go with FOSC over its own
    groups of either kind."""
    rows = [[described_group(end, chosen) for chosen in end.fosc.sort(stable=True).indices.tensor_split(s["groups"])]
            for end in ends]
    count = [{key: short(float(np.mean([row[key] for row in group]))) for key in group[0]}
             for group in zip(*rows, strict=True)]
    every = Reached(*(torch.cat([getattr(end, name) for end in ends]) for name in ("fosc", "loss", "slope", "correct")))
    last = s["groups_end"] or short(float(every.fosc.quantile(0.95))) or 1.0
    own = {"count": rows, "width": [by_width(end, last, s["groups"]) for end in ends]}
    shares = [end.fosc / (2 * s["eps"] * end.slope).clamp(min=torch.finfo(torch.float64).tiny) for end in ends]
    ranks = {"loss": [(end.fosc, end.loss) for end in ends], "slope": [(end.fosc, end.slope) for end in ends],
             "share_loss": [(share, end.loss) for share, end in zip(shares, ends, strict=True)]}
    return {"count": count, "width": by_width(every, last, s["groups"]), "width_end": last,
            "ranks": {kind: {key: [ranked(groups, key) for groups in mine] for key in ("accuracy", "loss")}
                      for kind, mine in own.items()},
            "accuracy": [short(end.accuracy) for end in ends],
            "within": [short(float((end.fosc < last).double().mean())) for end in ends],
            "rho": {name: [short(rank_correlation(a.tolist(), b.tolist())) for a, b in pairs]
                    for name, pairs in ranks.items()}}


def by_width(end: Reached, last: float, groups: int) -> list[dict[str, float]]:
    """Those that are large enough."""
    place = (end.fosc / last * groups).floor().long()
    rows = [described_group(end, (place == k).nonzero().flatten()) for k in range(groups)]
    return [row for row in rows if row["examples"] >= LEAST]


def ranked(groups: Sequence[Mapping[str, float]], key: str) -> float:
    """The rank correlation with FOSC over groups."""
    return short(rank_correlation([row["fosc"] for row in groups], [row[key] for row in groups]))


def described_group(end: Reached, chosen: Tensor) -> dict[str, float]:
    if not len(chosen):
        return {"examples": 0, "fosc": 0.0, "accuracy": 0.0, "loss": 0.0}
    return {"examples": len(chosen), "fosc": short(float(end.fosc[chosen].mean())),
            "accuracy": short(float(end.correct[chosen].double().mean())),
            "loss": short(float(end.loss[chosen].mean()))}


def along(paths: Sequence[Reached]) -> Numbers:
    """Figure 1b: all test examples of all networks in quantiles and shares, some of the first one by one."""
    found: Numbers = {}
    lines = torch.randperm(paths[0].fosc.shape[1], generator=torch.Generator().manual_seed(0))[:LINES]
    levels = torch.tensor(BANDS, dtype=torch.float64)
    for name in ("fosc", "loss"):
        values: Tensor = torch.cat([getattr(path, name) for path in paths], 1)
        sign = -1 if name == "fosc" else 1
        found[name] = {
            "lines": [[short(v) for v in line] for line in getattr(paths[0], name)[:, lines].T.tolist()],
            "bands": [[short(v) for v in band] for band in values.quantile(levels, dim=1).tolist()],
            # What the paper says of its examples: FOSC falls, the loss rises.
            "as_said": [short(float((sign * (getattr(p, name)[-1] - getattr(p, name)[0]) > 0).double().mean()))
                        for p in paths],
            "rho": [short(rank_along(getattr(path, name))) for path in paths]}
    return found


def rank_along(values: Tensor) -> float:
    """Spearman's correlation with the number of the step, the mean over examples ("K+1 N"); constant ones count 0."""
    ranks = stats.rankdata(values.numpy(), axis=0)
    ranks = ranks - ranks.mean(0)
    steps = np.arange(len(ranks))[:, None] - (len(ranks) - 1) / 2
    size = np.sqrt((ranks**2).sum(0) * (steps**2).sum())
    return float(np.mean((ranks * steps).sum(0) / np.where(size > 0, size, 1.0)))


def swept(trainings: Sequence[Training], seen: Mapping[tuple[Training, int], Seen], s: Settings) -> Numbers:
    """Figure 2, one column: each training against each attack, FOSC and loss after the last epoch."""
    ends = {key: one.epochs[s["epochs"]] for key, one in seen.items()}
    whole = {(t, name): [getattr(ends[t, seed], name) for seed in s["seeds"]]
             for t in trainings for name in ("fosc", "loss")}
    grids = {name: grid([v for t in trainings for v in whole[t, name]]) for name in ("fosc", "loss")}
    rows = [{"name": t.name, "steps": t.steps, "size": t.size,
             "clean": [short(seen[t, seed].clean) for seed in s["seeds"]],
             "robust": [[short(seen[t, seed].robust[attack]) for seed in s["seeds"]] for attack in trainings],
             **{name: described_sample(whole[t, name], grids[name], s["near"]) for name in grids}} for t in trainings]
    apart = {}
    for name in grids:  # seed by seed
        pairs = [distances([whole[t, name][k] for t in trainings]) for k in range(len(s["seeds"]))]
        apart[name] = {"most": [short(max(d)) for d in pairs], "mean": [short(float(np.mean(d))) for d in pairs]}
    return {"attacks": [t.name for t in trainings], "grids": grids, "trainings": rows, "apart": apart}


def staged(seen: Mapping[tuple[Training, int], Seen], s: Settings) -> Numbers:
    """Figure 3: FOSC after early, middle and late epochs, and what the networks are worth at the end. lower_first: the
    share of examples whose FOSC is lower after the first of the epochs than after each other; lower_plain: lower after
    the last of them than with PGD of the same settings throughout."""
    trainings, seeds = by_stage(s), s["seeds"]
    whole = {(t, epoch): [seen[t, seed].epochs[epoch].fosc for seed in seeds]
             for t in trainings for epoch in s["look_at"]}
    places = grid([sample for samples in whole.values() for sample in samples])
    early, *later = s["look_at"]
    rows = [{"name": t.name, "clean": [short(seen[t, seed].clean) for seed in seeds],
             "robust": [[short(seen[t, seed].robust[a]) for seed in seeds] for a in stage_attacks(s)],
             "epochs": [described_sample(whole[t, epoch], places, s["near"]) for epoch in s["look_at"]],
             "lower_first": [lower_shares(whole[t, early], whole[t, epoch]) for epoch in later],
             "lower_plain": lower_shares(whole[t, later[-1]], whole[trainings[0], later[-1]])} for t in trainings]
    return {"attacks": [t.name for t in stage_attacks(s)], "grid": places, "trainings": rows}


def lower_shares(samples: Sequence[Tensor], others: Sequence[Tensor]) -> list[float]:
    """Of each network, the share of examples whose value lies below that in the other sample; ties count half."""
    return [short(float(((a < b).double() + 0.5 * (a == b)).mean())) for a, b in zip(samples, others, strict=True)]


def described_sample(samples: Sequence[Tensor], places: Sequence[float], near: float) -> Numbers:
    """A sample of each network: together as a distribution, one by one in figures. near: the share below that value."""
    return {**summary(torch.cat(list(samples)), places), "means": [short(float(v.mean())) for v in samples],
            "medians": [short(float(v.median())) for v in samples],
            "near": [short(float((v <= near).double().mean())) for v in samples]}


# ---------------------------------------------------------------------- judging


def judge(numbers: Numbers, s: Settings) -> list[Verdict]:
    return [judge_groups(numbers["strength"], s), judge_paths(numbers["paths"]), judge_sizes(numbers["sizes"]),
            judge_indicator(numbers["sizes"]), judge_shapes(numbers["sizes"], numbers["examples"]["shown"]),
            judge_steps(numbers["steps"], numbers["sizes"]), judge_stages(numbers["stages"], s),
            judge_fgsm(numbers["stages"], s)]


def judge_groups(found: Numbers, s: Settings) -> Verdict:
    kind, other = s["grouping"], "width" if s["grouping"] == "count" else "count"
    ranks = {k: [interval(found["ranks"][k][key], RANK) for key in ("accuracy", "loss")] for k in (kind, other)}
    lines = [explained([row["fosc"] for row in found[kind]], [row[key] for row in found[kind]])
             for key in ("accuracy", "loss")]
    rho = {name: float(np.mean(values)) for name, values in found["rho"].items()}
    by_accuracy, by_loss = ranks[kind]
    said = (f"Over a network's groups of equal {kind} the rank correlation of FOSC, mean and 95 % interval over "
            f"networks, is {by_accuracy} with accuracy (needed: above zero) and {by_loss} with loss (needed: below); "
            f"over the groups of all networks straight lines explain {100 * lines[0]:.0f} % and {100 * lines[1]:.0f} % "
            f"of the variance. In groups of equal {other}: {ranks[other][0]} and {ranks[other][1]}. "
            "Over single examples FOSC goes with the loss at rho = "
            f"{rho['loss']:+.2f} and with the length of the gradient at rho = {rho['slope']:+.2f}; as a share of the "
            f"largest value that this length allows, with the loss at rho = {rho['share_loss']:+.2f}.")
    parts = [stands(by_accuracy, above=0), stands(by_loss, below=0)]
    if AGAINST in parts and rho["slope"] > abs(rho["share_loss"]):
        said += (" FOSC is in units of the loss: small where PGD has converged, but also where gradients are small, as "
                 f"they are where the network is sure of a label (PGD leaves "
                 f"{100 * np.mean(found['accuracy']):.0f} % of the examples theirs).")
    return verdict("The lower the FOSC of PGD examples, the lower the accuracy on them and the higher their loss",
                   PLACE + "Figure 1a", parts, said)


def explained(x: Sequence[float], y: Sequence[float]) -> float:
    """The share of the variance of y that a straight line in x explains."""
    return 0.0 if len(set(x)) < 2 or len(set(y)) < 2 else float(np.corrcoef(x, y)[0, 1] ** 2)


def judge_paths(found: Numbers) -> Verdict:
    fosc, loss = found["fosc"], found["loss"]
    falling, rising = interval(fosc["rho"], RANK), interval(loss["as_said"], SHARE)
    middle = fosc["bands"][BANDS.index(0.5)]
    spans = [loss["bands"][-1][k] - loss["bands"][0][k] for k in (0, -1)]
    said = (f"The rank correlation of FOSC with the number of the step, mean over test examples, is {falling} "
            f"(consistent: below -{NEARLY_ALL:g}); FOSC ends below its start for "
            f"{100 * np.mean(fosc['as_said']):.1f} % of them. Its median goes from {middle[0]:.3g} to "
            f"{middle[-1]:.3g} (needed: to a tenth){_worst_step(middle)}. From the random start to the last step the "
            f"loss rises for a share of {as_share(rising)} of them (needed: above {NEARLY_ALL:g}). Between its 10 % "
            f"and 90 % quantiles it spans {spans[0]:.3g} at the start and {spans[1]:.3g} at the end (needed: more).")
    return verdict("Along the steps of PGD, FOSC falls consistently and towards zero, while the loss rises and ends in "
                   "a wider range of values", PLACE + "Figure 1b",
                   [stands(falling, below=-NEARLY_ALL), plain(middle[-1] <= TOWARDS_ZERO * middle[0]),
                    stands(rising, above=NEARLY_ALL), plain(spans[1] > spans[0])], said)


def _worst_step(median: Sequence[float]) -> str:
    """Where a median that should fall rises most."""
    rises = np.diff(median)
    worst = int(rises.argmax())
    return f"; at step {worst + 1} it rises, to {median[worst + 1]:.3g}" if rises[worst] > 0 else ""


def robustness(row: Numbers) -> np.ndarray[Any, Any]:
    """Of each seed, the mean over the attacks."""
    shares: np.ndarray[Any, Any] = np.mean(row["robust"], axis=0)
    return shares


def judge_sizes(found: Numbers) -> Verdict:
    rows = {row["size"]: row for row in found["trainings"]}
    middle = np.mean([robustness(rows[size]) for size in MIDDLE], axis=0)
    gains = {size: interval((middle - robustness(row)).tolist()) for size, row in rows.items()
             if not min(MIDDLE) <= size <= max(MIDDLE)}
    best = [max(rows.values(), key=lambda row: float(np.mean(row["robust"][k])))["size"]
            for k in range(len(found["attacks"]))]
    told = "; ".join(f"over {size_name(size)} {points(gain)}" for size, gain in gains.items())
    said = ("Gain in robustness of the mean of eps/2 and eps/4, in percentage points with 95 % intervals over seeds: "
            f"{told} (needed: above zero). Against attacks with steps of {', '.join(map(size_name, rows))}, most "
            f"robust is training with {', '.join(map(size_name, best))}.")
    return verdict("Of the step sizes of PGD training, eps/2 and eps/4 give, taken together, more robustness than each "
                   "larger and smaller one", PLACE + "Figure 2a",
                   [stands(gain, above=0) for gain in gains.values()], said)


def judge_indicator(found: Numbers) -> Verdict:
    """A correlation for each seed, over the step sizes: networks of one seed have their start and their data in
    common, so that only seeds are independent."""
    rows = found["trainings"]
    robust = np.array([robustness(row) for row in rows])
    rho = {name: [rank_correlation([row[name]["means"][k] for row in rows], robust[:, k].tolist())
                  for k in range(robust.shape[1])] for name in ("fosc", "loss")}
    grain = rank_grain(len(rows))
    by_fosc, by_loss = (interval(rho[name], RANK, grain) for name in ("fosc", "loss"))
    more = interval([-a - abs(b) for a, b in zip(rho["fosc"], rho["loss"], strict=True)], grain=grain)
    said = (f"Inside each seed, over the {len(rows)} step sizes, robustness has the rank correlation {by_fosc} with "
            "the mean FOSC of training examples in the last epoch (mean and 95 % interval over seeds; needed: below "
            f"zero) and {by_loss} with their mean loss, whose size is exceeded by {more} (needed: above zero). Here "
            "networks differ in the step size of one method; the study `dynamic` asks the same of networks that differ "
            "in the method of training.")
    return verdict("Between networks trained with several step sizes: the lower the FOSC of training examples in the "
                   "last epoch, the more robust the network; FOSC tells more than the loss",
                   PLACE + "Figures 2a and 2c",
                   [stands(by_fosc, below=0), together(stands(by_fosc, below=0), stands(more, above=0))], said)


def judge_shapes(found: Numbers, examples: int) -> Verdict:
    """Almost the same is within SAME, different beyond it; both are needed, for either alone is no contrast."""
    fosc, loss = (interval(found["apart"][name]["most"], SHARE) for name in ("fosc", "loss"))
    noise = KOLMOGOROV * math.sqrt(2 / examples)
    said = ("The two most different distributions of the last epoch, by the largest difference of cumulative shares, "
            f"are {as_share(fosc)} apart in FOSC (needed: above {SAME:g}) and {as_share(loss)} in loss (needed: below "
            f"{SAME:g}), with 95 % intervals over seeds; samples of {examples} examples of one distribution are up to "
            f"{noise:.2g} apart by chance.")
    parts = [stands(fosc, above=SAME), stands(loss, below=SAME)]
    return verdict("Distributions of the loss are almost the same for all step sizes, while those of FOSC differ",
                   PLACE + "Figures 2c and 2e", [together(*parts) if noise < SAME else SILENT], said)


def judge_steps(steps: Numbers, sizes: Numbers) -> Verdict:
    rows = sorted(steps["trainings"], key=lambda row: int(row["steps"]))
    gains = {(few["steps"], many["steps"]): interval((robustness(many) - robustness(few)).tolist())
             for few, many in combinations(rows, 2)}
    widest = max(gains, key=lambda pair: abs(gains[pair].mean))
    unsure = max(gain.high - gain.mean for gain in gains.values())
    by_size, by_number = (found["apart"]["fosc"]["mean"] for found in (sizes, steps))
    closer = interval([a - b for a, b in zip(by_size, by_number, strict=True)])
    claim = ("Numbers of steps give networks of nearly the same robustness and distributions of FOSC that differ less "
             "than those of step sizes")
    said = (f"Between two numbers of steps robustness differs most from {widest[0]} to {widest[1]}: by "
            f"{points(gains[widest])} percentage points (needed: the interval of each of {len(gains)} pairs between "
            f"-{100 * ALIKE:g} and {100 * ALIKE:g}, and the least sure of them reaches "
            + ("no end" if math.isinf(unsure) else f"{100 * unsure:.2g} points") + " to either side). Distributions "
            f"of FOSC are {np.mean(by_number):.3f} apart, the mean over pairs, and by step size "
            f"{np.mean(by_size):.3f}; difference {closer} (needed: above zero).")
    parts = [together(*(stands(gain, above=-ALIKE, below=ALIKE) for gain in gains.values())), stands(closer, above=0)]
    # Twice eps is the way across the ball.
    enough = [row["steps"] for row in rows if row["steps"] * row["size"] >= 2 * (1 - ROUNDED)]
    if later := {many: gains[enough[0], many] for many in enough[1:]}:
        claim += "; steps beyond what crosses the ball gain next to nothing"
        said += (f" From {enough[0]}, the fewest that reach every side of the ball from anywhere, robustness gains "
                 + "; ".join(f"{points(gain)} to {many}" for many, gain in later.items())
                 + f" (needed: intervals that end below {100 * ALIKE:g}).")
        parts.append(together(*(stands(gain, below=ALIKE) for gain in later.values())))
    return verdict(claim, PLACE + "Figures 2b and 2d", parts, said)


def judge_stages(found: Numbers, s: Settings) -> Verdict:
    parts: list[str] = []
    told = []
    for row in found["trainings"][:2]:
        lower = [interval(shares, SHARE) for shares in row["lower_first"]]
        parts += [stands(share, above=0.5) for share in lower]
        means = ", ".join(f"{np.mean(epoch['means']):.3g}" for epoch in row["epochs"])
        told.append(f"{row['name']}: {' and '.join(map(as_share, lower))}, mean FOSC {means}")
    early, *later = s["look_at"]
    said = (f"Share of training examples whose FOSC is lower after epoch {early} than after epochs "
            f"{' and '.join(map(str, later))} (ties count half), with 95 % intervals over seeds, and the mean FOSC "
            f"after these epochs. {'; '.join(told)} (needed: shares above 0.5).")
    return verdict("Early in PGD training FOSC is lower than in the middle and at the end: converged attacks are easy "
                   "to find there", PLACE + "Figure 3a", parts, said)


def judge_fgsm(found: Numbers, s: Settings) -> Verdict:
    plain, _, after = found["trainings"]
    gain = interval((robustness(after) - robustness(plain)).tolist())
    lower = interval(after["lower_plain"], SHARE)
    near = [100 * float(np.mean(row["epochs"][-1]["near"])) for row in (plain, after)]
    said = (f"Robustness gains {points(gain)} percentage points, with 95 % interval over seeds (needed: above zero). "
            f"After epoch {s['look_at'][-1]} FOSC is lower than with PGD throughout for a share of {as_share(lower)} "
            f"of the training examples (ties count half; needed: above 0.5); it is at most {s['near']:g} for "
            f"{near[0]:.1f} % of them with PGD throughout and for {near[1]:.1f} % after FGSM.")
    return verdict("With FGSM instead of PGD in the first epochs, the network is more robust in the end, and PGD "
                   "converges better late in training", PLACE + "Figures 3b and 3c",
                   [stands(gain, above=0), stands(lower, above=0.5)], said)


def points(share: Interval) -> str:
    """A difference of shares in percentage points."""
    return str(Interval(100 * share.mean, 100 * share.low, 100 * share.high, share.n))


def as_share(share: Interval) -> str:
    ends = "no interval" if math.isinf(share.low) else f"{share.low:.2f} to {share.high:.2f}"
    return f"{share.mean:.2f} ({ends}, n = {share.n})"


# ---------------------------------------------------------------------- showing


def draw(numbers: Numbers, s: Settings) -> dict[str, Drawing]:
    count, found = numbers["examples"], numbers["strength"]
    of = (f"Data: {s['data']} ({count['train']} training and {count['test']} test examples); network {s['model']}, "
          f"l_inf eps {s['eps']:.4g}, {s['epochs']} epochs, seeds {', '.join(map(str, s['seeds']))}.")
    attacked = f"test examples under {by_stage(s)[0].name} from a random start, against networks trained with it"
    densities_of = (f"densities (Gaussian kernels) of FOSC and loss of {count['shown']} training examples under the "
                    "training's own attack after the last epoch, all seeds together")
    robust = "test examples that keep their label where PGD ends (mean over seeds, bars: standard deviation)"
    return {
        "groups": Drawing(draw_groups(found), (
            f"Accuracy and mean loss by FOSC: {attacked}. (a) Groups of equal count, within each network, means over "
            f"networks; (b) groups of equal width up to {found['width_end']:.3g}, where "
            f"{100 * np.mean(found['within']):.0f} % of the examples of all networks lie, groups of fewer than {LEAST} "
            f"examples left out. {of}")),
        "paths": Drawing(draw_paths(numbers["paths"]), (
            f"FOSC and loss along the steps: {LINES} {attacked} (the first seed), and the median of all test examples "
            f"and networks. {of}")),
        "sizes": Drawing(draw_sweep(numbers["sizes"], "step size"), (
            f"Training on PGD with {s['size_steps']} steps of several sizes. (a) {robust}, for each step size in "
            f"training (axis) and testing (line); (b), (c) {densities_of}. {of}")),
        "steps": Drawing(draw_sweep(numbers["steps"], "number of steps"), (
            f"Training on PGD with several numbers of steps of {size_name(s['step_size'])}. (a) {robust}, for each "
            f"number of steps in training (axis) and testing (line); (b), (c) {densities_of}. {of}")),
        "epochs": Drawing(draw_epochs(numbers["stages"], s), (
            f"(a) Densities of the FOSC of {count['shown']} training examples after early, middle and late epochs of "
            "PGD training with two step sizes, all seeds together, on a logarithmic scale; (b) robustness at the end, "
            "a dot a seed, squares and bars: mean and standard deviation; (c) as (a), with FGSM in the first "
            f"{s['fgsm_epochs']} epochs, when FOSC is that of the points of FGSM. {of}"))}


def draw_groups(found: Numbers) -> Figure:
    figure = new_figure(10, 3.6)
    axes = figure.subplots(1, 2)
    for axis, kind, title in zip(axes, ("count", "width"), (
            "(a) groups of equal count", "(b) groups of equal width"), strict=True):
        rows = found[kind]
        fosc = [row["fosc"] for row in rows]
        other = axis.twinx()
        axis.plot(fosc, [100 * row["accuracy"] for row in rows], "o-", color=COLOURS[0])
        other.plot(fosc, [row["loss"] for row in rows], "s--", color=COLOURS[1])
        if kind == "count" and (above := [v for v in fosc if v > 0]):
            axis.set_xscale("symlog", linthresh=min(above))
        axis.set(title=title, xlabel="mean FOSC of the group, nats")
        axis.set_ylabel("accuracy, % (dots)", color=COLOURS[0])
        other.set_ylabel("mean cross-entropy, nats (squares)", color=COLOURS[1])
    return figure


def draw_paths(found: Numbers) -> Figure:
    figure = new_figure(10, 3.6)
    axes = figure.subplots(1, 2)
    for axis, (name, unit), title in zip(axes, UNITS.items(), ("(a) FOSC", "(b) loss"), strict=True):
        for k, line in enumerate(found[name]["lines"]):
            axis.plot(line, color=COLOURS[k % len(COLOURS)], linewidth=0.8)
        axis.plot(found[name]["bands"][BANDS.index(0.5)], color="black", linewidth=2, label="median of all")
        axis.set(title=title, xlabel="step of PGD", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    return figure


def draw_sweep(found: Numbers, what: str) -> Figure:
    figure = new_figure(13, 4)
    robust, *others = figure.subplots(1, 3)
    rows = found["trainings"]
    names = [size_name(row["size"]) if what == "step size" else f"{row['steps']} steps" for row in rows]
    for k, name in enumerate(names):
        shares = 100 * np.array([row["robust"][k] for row in rows])
        # Side by side, so that bars do not hide each other.
        places = np.arange(len(rows)) + 0.06 * (k - (len(rows) - 1) / 2)
        robust.errorbar(places, shares.mean(1), yerr=deviation(shares), capsize=3, label=f"tested with {name}",
                        marker="o", markersize=4, **look_of(k))
    robust.set_xticks(range(len(rows)), names)
    robust.set(title=f"(a) robustness, by {what}", xlabel=f"{what} in training", ylabel="accuracy under PGD, %")
    robust.legend(fontsize=8)
    for axis, (quantity, unit), title in zip(others, UNITS.items(), ("(b) FOSC", "(c) loss"), strict=True):
        samples = zip(names, (row[quantity] for row in rows), strict=True)
        densities(axis, found["grids"][quantity], samples, unit)
        axis.set_title(f"{title} of training examples")
        axis.legend(fontsize=8)
    return figure


def draw_epochs(found: Numbers, s: Settings) -> Figure:
    figure = new_figure(13, 4.2)
    left, middle, right = figure.subplots(1, 3)
    rows = found["trainings"]
    highest = max(max(epoch["density"]) for row in rows for epoch in row["epochs"])
    for axis, chosen, title in ((left, rows[:2], "(a) PGD throughout"), (right, rows[2:], "(c) FGSM, then PGD")):
        for style, row in zip(STYLES, chosen, strict=False):
            names = [f"{row['name']}: epoch {epoch}" for epoch in s["look_at"]]
            densities(axis, found["grid"], zip(names, row["epochs"], strict=True), UNITS["fosc"], style)
        axis.set_yscale("log")
        axis.set_ylim(highest / 1e3, 2 * highest)
        axis.set_title(title)
        axis.legend(fontsize=7)
    for k, attack in enumerate(found["attacks"]):
        shares = 100 * np.array([row["robust"][k] for row in rows])
        places = np.arange(len(rows)) + 0.15 * (k - (len(found["attacks"]) - 1) / 2)
        middle.plot(np.repeat(places, shares.shape[1]), shares.ravel(), "o", color=COLOURS[k], alpha=0.5, markersize=4)
        middle.errorbar(places, shares.mean(1), yerr=deviation(shares), fmt="s", color=COLOURS[k], capsize=3,
                        label=f"under {attack}")
    middle.set_xticks(range(len(rows)), [row["name"].replace(", ", ",\n") for row in rows], fontsize=7)
    middle.set(title="(b) robustness, by training", ylabel="accuracy under PGD, %")
    middle.legend(fontsize=7)
    return figure


def deviation(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Over seeds, the last axis; zero for one seed."""
    found: np.ndarray[Any, Any] = shares.std(1, ddof=1) if shares.shape[1] > 1 else np.zeros(len(shares))
    return found


def look_of(k: int) -> dict[str, str]:
    """Colour and line of the k-th curve: either alone tells curves apart."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k % len(STYLES)]}


def densities(axis: Axes, places: Sequence[float], samples: Iterable[tuple[str, Numbers]], unit: str,
              style: str | None = None) -> None:
    for k, (label, sample) in enumerate(samples):
        look = look_of(k) if style is None else look_of(k) | {"linestyle": style}
        axis.plot(places, sample["density"], label=label, **look)
    axis.set(xlabel=unit, ylabel="density, 1/nat", xlim=(0, places[-1]))
    axis.set_ylim(bottom=0)


def table(numbers: Numbers, s: Settings) -> str:
    swept_lines = [[row["name"], percent(row["clean"]), percent(robustness(row)), spread(row["fosc"]["means"], 4),
                    percent(row["fosc"]["near"]), spread(row["loss"]["means"], 3)]
                   for key in ("sizes", "steps") for row in numbers[key]["trainings"]]
    stage_lines = [[row["name"], percent(row["clean"]), percent(robustness(row)),
                    *(spread(epoch["means"], 4) for epoch in row["epochs"])] for row in numbers["stages"]["trainings"]]
    return "\n".join([
        markdown(["training", "clean %", "robust %", "mean FOSC at the end", f"FOSC <= {s['near']:g}, %", "mean loss"],
                 swept_lines, 1),
        "", "Robust: under PGD with the step sizes (numbers of steps) of the same group, the mean over these attacks; "
        f"means over {len(s['seeds'])} seeds, behind ± their standard deviation. FOSC and loss: of training examples. "
        "By epochs:",
        "", markdown(["training", "clean %", "robust %", *(f"mean FOSC, epoch {e}" for e in s["look_at"])],
                     stage_lines, 1)])


def percent(shares: Sequence[float] | np.ndarray[Any, Any]) -> str:
    return spread([100 * float(v) for v in shares])


# ---------------------------------------------------------------------- settings

DIGITS: Settings = {
    "data": "digits", "train_examples": 0, "test_examples": 0, "examples": 1000, "model": "mlp", "eps": 0.2,
    "seeds": [0, 1, 2, 3, 4],
    "epochs": 60, "batch_size": 64, "optimiser": "adam", "lr": 2e-3, "lr_factor": 0.1, "weight_decay": 1e-4,
    "milestones": [30, 50],
    "step_sizes": [1.0, 0.5, 0.25, 0.125], "size_steps": 20, "steps": [10, 20, 30, 40], "step_size": 1 / 6,
    "stage_sizes": [0.25, 0.125], "stage_steps": 10, "look_at": [5, 30, 50], "fgsm_epochs": 10,
    "grouping": "count", "groups": 20, "groups_end": 0.0, "near": 0.02,
}
QUICK = DIGITS | {
    "train_examples": 300, "test_examples": 100, "examples": 100, "seeds": [0, 1],
    "epochs": 3, "milestones": [2], "size_steps": 4, "steps": [2, 4], "stage_steps": 3, "look_at": [1, 2, 3],
    "fgsm_epochs": 1, "groups": 5,
}
ON_MNIST = DIGITS | {
    "data": "mnist", "train_examples": 1500, "test_examples": 500, "model": "wk-small", "eps": 0.1,
    "epochs": 15, "lr": 1e-3, "milestones": [10, 13], "look_at": [2, 8, 15], "fgsm_epochs": 4,
}
PAPER = DIGITS | {
    "data": "cifar10", "examples": 10_000, "model": "wang8", "eps": 8 / 255, "seeds": [0, 1, 2],
    "epochs": 120, "batch_size": 128, "optimiser": "sgd", "lr": 0.01, "milestones": [60, 100],
    "look_at": [10, 60, 100], "fgsm_epochs": 20, "grouping": "width", "groups_end": 0.1, "near": 0.1,
}

STUDY = Study(name="fosc", title="FOSC and adversarial strength",
              source="Wang et al., On the Convergence and Robustness of Adversarial Training, ICML 2019 "
                     "(arXiv:2112.08304), Figures 1 to 3",
              modes={"quick": QUICK, "default": DIGITS, MNIST: ON_MNIST, "paper": PAPER}, measure=measure, draw=draw,
              judge=judge, table=table)

if __name__ == "__main__":
    sys.exit(run(STUDY))
