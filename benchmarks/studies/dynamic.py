"""Dynamic, Curriculum and Standard adversarial training (Wang et al., ICML 2019, arXiv:2112.08304), each with the same
PGD: how robust they are, and what training meets.

    python benchmarks/studies/dynamic.py                                                  # the digits
    python benchmarks/studies/dynamic.py --mode paper --data-dir D --device cuda          # MNIST; not run yet
    python benchmarks/studies/dynamic.py --mode paper --data-dir D --device cuda --set data=cifar10 --set model=wang8 \\
        --set eps=0.0313725 --set "tested=[0.0078431,0.0156863,0.0235294,0.0313725]" \\
        --set "trained=[0.0078431,0.0156863,0.0235294,0.0313725]" --set epochs=120 --set "stages=[10,60,100]" \\
        --set "curriculum_stages=[60,90,120]" --set surrogate=resnet              # CIFAR-10; not run yet

The wide network of Table 3 is `--set model=wrn --set 'model_settings={"depth":34,"width":10}'` with what is set for
CIFAR-10 (its schedule is that of the eight layers unless `training` says otherwise). What is not set here comes from
the recipe of method and data set (`certify.adversarial.recipes`); what the last epoch leaves is kept.

An example counts as fallen where any step of an attack fools the network; attacks are those of `certify.evaluate`,
with their own step sizes. c_max is 0.5 as in the paper, which is also what FGSM examples of the digits have
on average after two epochs of training on PGD (the paper's rule); it moves with the training radius, as FOSC does.
`mixing`: Curriculum's easier attacks in every batch. FOSC is taken of the points at which a training would take its
loss next, on the same training images after each of the named epochs.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # measure the checkout that this file lies in, installed or not

import numpy as np  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.machine import markdown  # noqa: E402
from benchmarks.studies.claims import plain, stands, together, verdict  # noqa: E402
from benchmarks.studies.convergence import (  # noqa: E402
    LEVELS,
    distances,
    distribution,
    grid,
    required_epochs,
    short,
    summary,
)
from benchmarks.studies.fits import RANK, Interval, interval, rank_grain  # noqa: E402
from benchmarks.studies.study import (  # noqa: E402
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
from certify import evaluate, resolve, train  # noqa: E402
from certify.classifier import Classifier  # noqa: E402
from certify.data.dataset import Examples, TrainingData  # noqa: E402
from certify.data.registry import load  # noqa: E402
from certify.export import export_onnx  # noqa: E402
from certify.inner import cross_entropy_of, input_gradient  # noqa: E402
from certify.measure import Threatened, step_for  # noqa: E402
from certify.trainer import Points  # noqa: E402
from verifier.attacks.fosc import stationarity_gap  # noqa: E402
from verifier.panels import new_figure  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNSECURED, STANDARD, CURRICULUM, DYNAMIC = "standard", "pgd", "curriculum", "dynamic"  # as `certify` has them
NAMES = {UNSECURED: "Unsecured", STANDARD: "Standard", CURRICULUM: "Curriculum", DYNAMIC: "Dynamic"}
DEFENCES = (STANDARD, CURRICULUM, DYNAMIC)
ATTACKS = {"fgsm": "FGSM", "pgd-10": "PGD-10", "pgd-20": "PGD-20", "cw-inf": "C&W_inf"}
TRANSFERRED = {"fgsm": "transfer-fgsm", "pgd-10": "transfer-pgd-10", "pgd-20": "transfer", "cw-inf": "transfer-cw-inf"}
STAGES = ("early", "middle", "late")
SMALL = 1 / 5          # of c_max, 0.1 of 0.5: the density that the paper's text on Figure 3c names is that up to 0.1
LOST = 0.01            # an accuracy that counts as none
SURROGATE_SEED = 1000  # no defence has it
ROUNDED = 6             # decimals of differences
COLOURS = {UNSECURED: "#777777", STANDARD: "#0072B2", CURRICULUM: "#E69F00", DYNAMIC: "#009E73"}
MARKERS = {UNSECURED: "x", STANDARD: "o", CURRICULUM: "s", DYNAMIC: "^"}
LEAST_DENSITY = 0.02  # that is drawn
LINES = {"early": ":", "middle": "--", "late": "-"}

MODES: dict[str, Settings] = {
    "quick": {"data": "digits", "model": "wang4", "model_settings": {"width": 4, "hidden": 16}, "surrogate": "wang4",
              "surrogate_settings": {"width": 4, "hidden": 16}, "eps": 0.1, "tested": [0.05, 0.1],
              "trained": [0.05, 0.1], "steps": 3, "step_size": 0.5, "c_max": 0.5, "mixing": True, "epochs": 3,
              "stages": [1, 2, 3], "curriculum_stages": [1, 2, 3], "training": {"batch_size": 64, "lr": 5e-3},
              "seeds": [0, 1], "training_images": 160, "images": 40, "watched": 32},
    "default": {"data": "digits", "model": "wang4", "model_settings": {"width": 8, "hidden": 64}, "surrogate": "wang4",
                "surrogate_settings": {"width": 8, "hidden": 64}, "eps": 0.1, "tested": [0.025, 0.05, 0.075, 0.1],
                "trained": [0.025, 0.05, 0.075, 0.1], "steps": 10, "step_size": 0.25, "c_max": 0.5, "mixing": True,
                "epochs": 36, "stages": [3, 18, 30], "curriculum_stages": [18, 27, 36],
                "training": {"batch_size": 128}, "seeds": [0, 1, 2, 3, 4], "training_images": None, "images": None,
                "watched": 512},
    "mnist": {"data": "mnist", "model": "wang4", "model_settings": {"width": 8, "hidden": 64}, "surrogate": "wang4",
              "surrogate_settings": {"width": 8, "hidden": 64}, "eps": 0.2, "tested": [0.05, 0.1, 0.15, 0.2],
              "trained": [0.1, 0.2], "steps": 10, "step_size": 0.25, "c_max": 0.5, "mixing": True, "epochs": 20,
              "stages": [2, 10, 17], "curriculum_stages": [10, 15, 20],
              "training": {"batch_size": 64, "milestones": [12, 17]}, "seeds": [0, 1, 2, 3, 4], "training_images": 2500,
              "images": 500, "watched": 512},
    "paper": {"data": "mnist", "model": "wang4", "model_settings": {}, "surrogate": "wang4", "surrogate_settings": {},
              "eps": 0.3, "tested": [0.075, 0.15, 0.225, 0.3], "trained": [0.075, 0.15, 0.225, 0.3], "steps": 10,
              "step_size": 0.25, "c_max": 0.5, "mixing": True, "epochs": 50, "stages": [4, 25, 42],
              "curriculum_stages": [25, 38, 50], "training": {}, "seeds": [0, 1, 2],
              "training_images": None, "images": None, "watched": 2000},
}
PUBLISHED: dict[str, dict[str, tuple[list[float], list[float]]]] = {  # clean and white-box, black-box: per cent
    "mnist": {UNSECURED: ([99.20, 14.04, 0.0, 0.0, 0.0], []),
              STANDARD: ([97.61, 94.71, 91.21, 90.62, 91.03], [96.12, 95.73, 95.73, 97.20]),
              CURRICULUM: ([98.62, 95.51, 91.24, 90.65, 91.12], [96.59, 95.87, 96.09, 97.52]),
              DYNAMIC: ([97.96, 95.34, 91.63, 91.27, 91.47], [97.60, 97.01, 96.97, 98.36])},
    "cifar10": {UNSECURED: ([89.39, 2.2, 0.0, 0.0, 0.0], []),
                STANDARD: ([66.31, 48.65, 44.39, 40.02, 36.33], [65.65, 65.80, 65.60, 66.12]),
                CURRICULUM: ([72.40, 50.47, 45.54, 40.12, 35.77], [71.25, 71.44, 71.13, 71.94]),
                DYNAMIC: ([72.17, 52.81, 48.06, 42.40, 37.26], [71.95, 72.15, 72.02, 72.85])},
}


# ---------------------------------------------------------------------- networks


def gaps(model: Classifier, examples: Examples, points: Tensor, eps: float, clip: tuple[float, float] | None) -> Tensor:
    """FOSC of the cross-entropy at points "N *shape" of the examples' sets: float64 "N", on the CPU."""
    x, y = examples.x.to(points), examples.y.to(points.device)
    step = step_for(model, x, y, 0, Threatened(eps, math.inf, clip))
    with model.attacked():
        _, slope = input_gradient(step, points, step.everyone, cross_entropy_of(step))
    return stationarity_gap(slope, points, step.room(), step.everyone).double().cpu()


@dataclass(frozen=True, eq=False)
class Met:
    """FOSC of what a training met: by stage, after the last epoch, and there under PGD that is the same for all."""

    stages: list[Tensor]
    last: Tensor
    common: Tensor


@dataclass(frozen=True, eq=False)
class Workshop:
    """Where networks are trained and evaluated; their files lie in the folder."""

    settings: Settings
    context: Context
    data: TrainingData
    watched: Examples
    folder: Path

    def trained(self, training: str, eps: float, seed: int, model: str = "model") -> tuple[Path, Met | None]:
        """A network's file, and what its training met (None: it was not attacked). model: or "surrogate"."""
        s = self.settings
        own = {STANDARD: {"steps": s["steps"]}, CURRICULUM: {"last": s["steps"], "mixing": s["mixing"]},
               DYNAMIC: {"steps": s["steps"], "c_max": _c_max(s, eps)}}.get(training, {})
        step = {"step_size": s["step_size"]} if own else {}
        inside = {"model": s["model_settings"], "surrogate": s["surrogate_settings"]}[model]
        asked = resolve({"method": training, "method_settings": {**own, **step}, "data": s["data"], "eps": eps,
                         "model": s[model], "model_settings": inside, "epochs": s["epochs"], "seed": seed,
                         "keep": "last", **s["training"]})
        stages = s["curriculum_stages" if training == CURRICULUM else "stages"]
        found: dict[int, Tensor] = {}
        common: list[Tensor] = []

        def meet(epoch: int, network: Classifier, points: Points) -> None:
            if epoch in stages or epoch == s["epochs"]:
                found[epoch] = gaps(network, self.watched, points(self.watched), eps, self.data.clip)
            if epoch == s["epochs"]:
                common.append(distribution(network, self.watched, eps=eps, clip=self.data.clip, steps=s["steps"],
                                           step_size=s["step_size"], seed=seed).fosc)

        done = train(asked, data=self.data, device=self.context.device, meet=meet if own else None, worth=())
        file = self.folder / f"{model}-{training}-{eps:g}-{seed}.onnx"
        export_onnx(done.model.module, self.data.shape, file)
        self.context.tell(f"{NAMES[training]:10s} eps {eps:g}  seed {seed}  {model}  {done.card['seconds']:.1f} s")
        return file, Met([found[epoch] for epoch in stages], found[s["epochs"]], common[0]) if own else None

    def worth(self, network: Path, eps: float, attacks: Sequence[str], surrogate: Path | None = None
              ) -> dict[str, float]:
        """Clean accuracy and that under each attack, on the test images."""
        test = self.data.test
        found = evaluate(network, (test.x.numpy(), test.y.numpy()), eps=eps, clip=self.data.clip, attacks=attacks,
                         method="none", device=self.context.device,
                         surrogate=None if surrogate is None else str(surrogate)).summary
        return {"clean": found["clean"], **found["attacks"]}


def _c_max(settings: Settings, eps: float) -> float:
    """Of Dynamic at a training radius."""
    return float(settings["c_max"] * eps / settings["eps"])


def check(s: Settings) -> None:
    """Before hours of work. Raises SystemExit."""
    required(different(s["seeds"], 1) and SURROGATE_SEED not in s["seeds"], s, "seeds",
             f"one or more, all different, without {SURROGATE_SEED}")
    for name in ("tested", "trained"):
        required(different(s[name], 2) and min(s[name]) > 0, s, name, "two or more radii, all different")
    for name in ("stages", "curriculum_stages"):
        required_epochs(s, name)
    for name in ("steps", "watched"):
        required(s[name] >= 1, s, name, "1 or more")


def measure(settings: Settings, context: Context) -> Numbers:
    check(settings)
    with tempfile.TemporaryDirectory() as folder:
        data = load(settings["data"], context.data_dir).first(settings["training_images"], settings["images"])
        watched = data.train.take(slice(0, settings["watched"]))
        shop = Workshop(settings, context, data, watched, Path(folder))
        surrogate, _ = shop.trained(STANDARD, settings["eps"], SURROGATE_SEED, "surrogate")
        networks, met = [], []
        for training, eps, seed in _asked(settings):
            file, seen = shop.trained(training, eps, seed)
            met.append(seen)
            networks.append({"training": training, "eps": eps, "seed": seed,
                             **_accuracies(shop, file, eps, surrogate)})
        places = grid(values for network, seen in zip(networks, met, strict=True)
                      if seen is not None and network["eps"] == settings["eps"] for values in seen.stages)
        for network, seen in zip(networks, met, strict=True):
            if seen is not None:
                network["fosc"] = _stored(seen, places, SMALL * _c_max(settings, network["eps"]),
                                          network["eps"] == settings["eps"])
        return {"training_images": len(data.train), "test_images": len(data.test), "watched": len(watched),
                "grid": places, "surrogate": shop.worth(surrogate, settings["eps"], tuple(ATTACKS)),
                "networks": networks}


def _asked(settings: Settings) -> Iterator[tuple[str, float, int]]:
    """(training, radius, seed) of every network."""
    for seed in settings["seeds"]:
        yield UNSECURED, settings["eps"], seed
    for eps in sorted({settings["eps"], *settings["trained"]}):
        for training in DEFENCES:
            for seed in settings["seeds"]:
                yield training, eps, seed


def _accuracies(shop: Workshop, network: Path, eps: float, surrogate: Path) -> dict[str, Any]:
    """white: clean and under attacks at the training radius; where that is the main one also black, under attacks on
    the surrogate, and tested: under PGD-10 at each test radius."""
    s = shop.settings
    if eps != s["eps"]:
        return {"white": shop.worth(network, eps, ("pgd-10", "pgd-20"))}
    transferred = [name for attack, name in TRANSFERRED.items() if attack != "pgd-20"]  # which comes in any case
    found = shop.worth(network, eps, (*ATTACKS, *transferred), surrogate)
    tested = [found["pgd-10"] if e == eps else shop.worth(network, e, ("pgd-10",))["pgd-10"] for e in s["tested"]]
    return {"white": {name: found[name] for name in ("clean", *ATTACKS)},
            "black": {attack: found[name] for attack, name in TRANSFERRED.items()}, "tested": tested}


def _stored(met: Met, places: Sequence[float], small: float, whole: bool) -> dict[str, Any]:
    """whole: with the distributions at the stages."""
    def brief(values: Tensor) -> dict[str, float]:
        return {"mean": short(float(values.mean())), "median": short(float(values.median())),
                "small": short(float((values <= small).double().mean()))}
    stages = [{**brief(values), **summary(values, places)} for values in met.stages] if whole else None
    return {"last": brief(met.last), "common": brief(met.common), "stages": stages,
            "apart": short(*distances([met.stages[0], met.stages[-1]]))}


# ---------------------------------------------------------------------- what numbers say


Value = Callable[[dict[str, Any]], float]  # of a network


def of(numbers: Numbers, training: str, eps: float, value: Value) -> list[float]:
    """A value of the networks of a training at a radius, seed by seed."""
    return [value(n) for n in sorted(numbers["networks"], key=lambda n: int(n["seed"]))
            if n["training"] == training and n["eps"] == eps]


def lead(numbers: Numbers, eps: float, one: str, other: str, value: Value) -> Interval:
    """How far one training is above another, seed by seed."""
    return _mean(_leads_of(numbers, eps, one, other, value))


def _mean(values: Sequence[float]) -> Interval:
    """Rounded, as its values are."""
    found = interval(values)
    return Interval(round(found.mean, ROUNDED), round(found.low, ROUNDED), round(found.high, ROUNDED), found.n)


def _leads_of(numbers: Numbers, eps: float, one: str, other: str, value: Value) -> list[float]:
    """Seed by seed. Rounded: equal shares differ by nothing, and not by what floats leave."""
    pairs = zip(of(numbers, one, eps, value), of(numbers, other, eps, value), strict=True)
    return [round(a - b, ROUNDED) for a, b in pairs]


def per_cent(table: str, attack: str) -> Value:
    return lambda n: 100 * float(n[table][attack])


def _less(table: str, attack: str, other: str) -> Value:
    """How far the accuracy under one attack is above that under another."""
    return lambda n: 100 * float(n[table][attack] - n[table][other])


def stage(name: str, what: str) -> Value:
    return lambda n: float(n["fosc"]["stages"][STAGES.index(name)][what])


def _between_quartiles(name: str) -> Value:
    def value(n: dict[str, Any]) -> float:
        quantiles = n["fosc"]["stages"][STAGES.index(name)]["quantiles"]
        return float(quantiles[LEVELS.index(0.75)] - quantiles[LEVELS.index(0.25)])
    return value


def slope(places: Sequence[float], rows: Sequence[Sequence[float]]) -> Interval:
    """Of straight lines through values at two or more places, a row a seed."""
    return _mean([float(np.polyfit(places, row, 1)[0]) for row in rows])


def ranked_within(a: Sequence[float], b: Sequence[float], groups: Sequence[Any]) -> float:
    """Spearman's correlation of ranks inside groups; 0 where either is constant inside all of them. With one group it
    is the usual correlation."""
    from scipy.stats import rankdata
    first, second = np.array(a, float), np.array(b, float)
    where = np.array([list(dict.fromkeys(groups)).index(group) for group in groups])
    for group in np.unique(where):
        inside = where == group
        for values in (first, second):
            ranks = rankdata(values[inside])
            values[inside] = ranks - ranks.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 0 else 0.0


def judge(numbers: Numbers, settings: Settings) -> list[Verdict]:
    return [*_white(numbers, settings["eps"]), *_black(numbers, settings["eps"]), *_radii(numbers, settings),
            *_fosc(numbers, settings["eps"])]


def _points(means: Mapping[str, Interval]) -> str:
    return "; ".join(f"{name} {mean}" for name, mean in means.items())


HOW = "in points of accuracy, with the 95 % interval of the mean over seeds"


def _white(numbers: Numbers, eps: float) -> Iterator[Verdict]:
    clean = {f"above {NAMES[t]}": lead(numbers, eps, UNSECURED, t, per_cent("white", "clean")) for t in DEFENCES}
    left = max(max(of(numbers, UNSECURED, eps, per_cent("white", a))) for a in ("pgd-10", "pgd-20", "cw-inf"))
    yield verdict("Training without attacks is best on clean images, and PGD and C&W_inf leave nothing of it",
                  "Table 1", [together(*(stands(m, above=0) for m in clean.values())), plain(left <= 100 * LOST)],
                  f"Clean accuracy, {HOW}: {_points(clean)}. At most {left:.1f} % withstand PGD or C&W_inf "
                  f"(nothing: up to {100 * LOST:g} %).")
    yield _leads(numbers, eps, "Dynamic training is more robust than Standard under every white-box attack", "Table 1",
                 "white", [(DYNAMIC, STANDARD)])
    yield _leads(numbers, eps, "Dynamic training is more robust than Curriculum under strong white-box attacks",
                 "Table 1", "white", [(DYNAMIC, CURRICULUM)], ("pgd-20", "cw-inf"))
    gain = lead(numbers, eps, CURRICULUM, STANDARD, per_cent("white", "fgsm"))
    fading = {ATTACKS[a]: lead(numbers, eps, CURRICULUM, STANDARD, _less("white", "fgsm", a))
              for a in ("pgd-20", "cw-inf")}
    yield verdict("Curriculum training gains on Standard under weak attacks, and less under strong ones", "Section 5.1",
                  [stands(gain, above=0), together(*(stands(m, above=0) for m in (gain, *fading.values())))],
                  f"Gain under FGSM, {HOW}: {gain}. How much larger it is there than under others: "
                  f"{_points(fading)}.")


def _leads(numbers: Numbers, eps: float, claim: str, place: str, table: str, pairs: Sequence[tuple[str, str]],
           attacks: Sequence[str] = tuple(ATTACKS)) -> Verdict:
    """One training above another under each attack."""
    found = {(a, b, attack): lead(numbers, eps, a, b, per_cent(table, attack)) for a, b in pairs for attack in attacks}
    said = ". ".join(f"{NAMES[a]} above {NAMES[b]}: "
                     + _points({ATTACKS[attack]: found[a, b, attack] for attack in attacks})
                     + _published(table, a, b, attacks) for a, b in pairs)
    return verdict(claim, place, [stands(m, above=0) for m in found.values()],
                   f"{said} ({HOW}; one of {numbers['test_images']} images is {100 / numbers['test_images']:.2g} "
                   f"points; needed: intervals above 0).")


def _published(table: str, one: str, other: str, attacks: Sequence[str]) -> str:
    """The same differences in the paper."""
    part, before = {"white": (0, 1), "black": (1, 0)}[table]  # clean accuracy comes first
    at = [before + list(ATTACKS).index(attack) for attack in attacks]
    rows = {data: [found[one][part][k] - found[other][part][k] for k in at] for data, found in PUBLISHED.items()}
    return " (published: " + ", ".join(f"{data} " + "/".join(f"{v:+.2f}" for v in row)
                                       for data, row in rows.items()) + ")"


def _black(numbers: Numbers, eps: float) -> Iterator[Verdict]:
    yield _leads(numbers, eps, "Dynamic training withstands transferred attacks better than Standard and Curriculum",
                 "Table 2", "black", [(DYNAMIC, STANDARD), (DYNAMIC, CURRICULUM)])
    yield _leads(numbers, eps, "Curriculum training withstands transferred attacks better than Standard", "Table 2",
                 "black", [(CURRICULUM, STANDARD)])
    weaker = {(t, a): _mean(of(numbers, t, eps, lambda n, a=a: 100 * float(n["black"][a] - n["white"][a])))
              for t in DEFENCES for a in ATTACKS}
    least = min(weaker, key=lambda key: weaker[key].mean)
    yield verdict("Transferred attacks are weaker than the same attacks on the network itself", "Tables 1 and 2",
                  [stands(m, above=0) for m in weaker.values()],
                  f"Accuracy that they leave more, {HOW}: above 0 in {sum(m.low > 0 for m in weaker.values())} of "
                  f"{len(weaker)} pairs of training and attack; least {weaker[least]} ({NAMES[least[0]]}, "
                  f"{ATTACKS[least[1]]}).")
    rise = {NAMES[t]: _mean(of(numbers, t, eps, _less("black", "cw-inf", "fgsm")))
            for t in DEFENCES}
    yield verdict("Stronger attacks transfer less: more withstand C&W_inf than FGSM", "Table 2",
                  [stands(m, above=0) for m in rise.values()], f"More, {HOW}: {_points(rise)}.")


def _radii(numbers: Numbers, settings: Settings) -> Iterator[Verdict]:
    eps, tested = settings["eps"], settings["tested"]
    leading = {(t, k): lead(numbers, eps, t, STANDARD, lambda n, k=k: 100 * float(n["tested"][k]))
               for t in (CURRICULUM, DYNAMIC) for k in range(len(tested))}
    said = ". ".join(f"{NAMES[t]}: " + _points({f"eps {tested[k]:g}": leading[t, k] for k in range(len(tested))})
                     for t in (CURRICULUM, DYNAMIC))
    yield verdict("Curriculum and Dynamic are above Standard under PGD-10 of every radius", "Figure 4a",
                  [stands(m, above=0) for m in leading.values()], f"Lead on Standard, {HOW}. {said}.")
    leads = [_leads_of(numbers, eps, DYNAMIC, CURRICULUM, lambda n, k=k: 100 * float(n["tested"][k]))
             for k in range(len(tested))]
    yield _growing("Dynamic leads Curriculum, and the more so the larger the radius of the attack", "Figure 4a",
                   "Lead under PGD-10", dict(zip(tested, leads, strict=True)), eps)
    gains = {e: _leads_of(numbers, e, DYNAMIC, STANDARD, per_cent("white", "pgd-10")) for e in settings["trained"]}
    yield _growing("Dynamic gains on Standard, and the less so the smaller the radius of training", "Figure 4b",
                   "Gain under PGD-10 of the training radius", gains, eps)


def _growing(claim: str, place: str, what: str, leads: Mapping[float, Sequence[float]], eps: float) -> Verdict:
    """A lead, seed by seed at each radius, that is there at the largest, where it is largest by the claim, and grows
    with the radius: what is below zero everywhere has no lead that could shrink."""
    radii = sorted(leads)
    largest = _mean(leads[radii[-1]])
    rising = slope([e / eps for e in radii], list(zip(*(leads[e] for e in radii), strict=True)))
    said = _points({f"eps {e:g}": _mean(leads[e]) for e in radii})
    return verdict(claim, place, [together(stands(largest, above=0), stands(rising, above=0))],
                   f"{what}, {HOW}: {said} (needed: above 0 at the largest radius). Slope, in points for {eps:g} more "
                   f"of radius: {rising} (needed: above 0).")


def _fosc(numbers: Numbers, eps: float) -> Iterator[Verdict]:
    falls = {(t, a, b): _mean(of(numbers, t, eps, lambda n, a=a, b=b: stage(a, "mean")(n) - stage(b, "mean")(n)))
             for t in (CURRICULUM, DYNAMIC) for a, b in (("early", "middle"), ("middle", "late"))}
    yield verdict("Curriculum and Dynamic meet examples of ever better convergence: FOSC falls from stage to stage",
                  "Figure 5", [stands(m, above=0) for m in falls.values()],
                  "Mean FOSC that is lost, with the 95 % interval over seeds: "
                  + _points({f"{NAMES[t]}, {a} to {b}": m for (t, a, b), m in falls.items()}) + ".")
    narrow = {name: lead(numbers, eps, CURRICULUM, DYNAMIC, _between_quartiles(name)) for name in STAGES}
    apart = lead(numbers, eps, DYNAMIC, CURRICULUM, lambda n: float(n["fosc"]["apart"]))
    yield verdict("The distributions of Dynamic are narrower than those of Curriculum, and further apart", "Figure 5",
                  [*(stands(m, above=0) for m in narrow.values()), stands(apart, above=0)],
                  "Distance between quartiles, Curriculum less Dynamic, with the 95 % interval over seeds: "
                  f"{_points(narrow)}. Largest difference of the cumulative distributions early and late, Dynamic less "
                  f"Curriculum: {apart}.")
    small = {f"{NAMES[a]} above {NAMES[b]}": lead(numbers, eps, a, b, lambda n: 100 * stage("late", "small")(n))
             for a, b in ((DYNAMIC, CURRICULUM), (DYNAMIC, STANDARD), (CURRICULUM, STANDARD))}
    yield verdict("Late in training Dynamic meets most examples of small FOSC, then Curriculum, then Standard",
                  "Section 5.2, Figure 5", [stands(m, above=0) for m in small.values()],
                  f"Share of examples with FOSC up to a fifth of c_max, in points, with the 95 % interval over seeds: "
                  f"{_points(small)} (needed: above 0).")
    own, common = (correlation(numbers, which) for which in ("last", "common"))
    yield verdict("Between Standard, Curriculum and Dynamic: the lower FOSC is at the end of training, the more robust "
                  "the network", "Sections 3.2 and 5.2", [stands(own, below=0), stands(common, below=0)],
                  "Rank correlation of mean FOSC after the last epoch and accuracy under PGD-20, over the networks of "
                  f"each seed inside each training radius, mean and 95 % interval over seeds: {own} for the examples "
                  f"that each training meets, {common} under one PGD for all (needed: below 0). Here networks differ "
                  "in the method of training; the study `fosc` asks the same of networks that differ in the step size "
                  "of one method.")


def correlation(numbers: Numbers, which: str) -> Interval:
    """Of late FOSC and robustness over the networks of a seed that were trained on attacks, inside each radius. What is
    the seed's own (start, order of the data) its networks have in common, so that it counts once. which: "last" or
    "common"."""
    found = [n for n in numbers["networks"] if n["training"] in DEFENCES]
    seeds = [[n for n in found if n["seed"] == seed] for seed in sorted({n["seed"] for n in found})]
    values = [ranked_within([n["fosc"][which]["mean"] for n in mine], [n["white"]["pgd-20"] for n in mine],
                            [n["eps"] for n in mine]) for mine in seeds]
    return interval(values, RANK, rank_grain(len(DEFENCES)) / len({n["eps"] for n in found}))


# ---------------------------------------------------------------------- for people


def table(numbers: Numbers, settings: Settings) -> str:
    eps = settings["eps"]
    published = PUBLISHED.get(settings["data"], {})

    def rows(which: str, columns: Sequence[str], trainings: Sequence[str], part: int) -> list[list[str]]:
        lines = [[NAMES[t], *(spread(of(numbers, t, eps, per_cent(which, c))) for c in columns)] for t in trainings]
        return lines + [[f"{NAMES[t]}, paper", *(f"{v:.2f}" for v in published[t][part])] for t in trainings
                        if t in published]

    white = markdown(["white-box, %", "clean", *ATTACKS.values()],
                     rows("white", ("clean", *ATTACKS), tuple(NAMES), 0), 1)
    black = markdown(["black-box, %", *ATTACKS.values()], rows("black", tuple(ATTACKS), DEFENCES, 1), 1)
    radii = sorted({eps, *settings["trained"]})
    trained = markdown(["PGD-10 of the training radius, %", *(f"eps {e:g}" for e in radii)],
                       [[NAMES[t], *(spread(of(numbers, t, e, per_cent("white", "pgd-10"))) for e in radii)]
                        for t in DEFENCES], 1)
    met = markdown(["mean FOSC met", *STAGES, "small, late, %", "last epoch", "last, one PGD for all"], [[
        NAMES[t], *(spread(of(numbers, t, eps, stage(name, "mean")), 4) for name in STAGES),
        spread(of(numbers, t, eps, lambda n: 100 * stage("late", "small")(n))),
        spread(of(numbers, t, eps, lambda n: float(n["fosc"]["last"]["mean"])), 4),
        spread(of(numbers, t, eps, lambda n: float(n["fosc"]["common"]["mean"])), 4)] for t in DEFENCES], 1)
    said = (f"Mean ± standard deviation over {len(settings['seeds'])} seeds; l_inf, eps {eps:g}, "
            f"{numbers['test_images']} test images. Small: FOSC up to a fifth of c_max."
            + " Curriculum mixes easier attacks into every batch." * bool(settings["mixing"]))
    return "\n\n".join([said, white, black, trained, met])


def draw(numbers: Numbers, settings: Settings) -> dict[str, Drawing]:
    return {"tables": _draw_tables(numbers, settings), "radii": _draw_radii(numbers, settings),
            "fosc": _draw_fosc(numbers, settings), "rank": _draw_rank(numbers, settings)}


def _caption(settings: Settings, text: str) -> str:
    inside = ", ".join(f"{name} {value}" for name, value in settings["model_settings"].items())
    return (f"{text} {settings['data']}, network {settings['model']}{f' ({inside})' if inside else ''}, l_inf, eps "
            f"{settings['eps']:g} unless the figure says otherwise, {settings['epochs']} epochs, PGD of training with "
            f"{settings['steps']} steps of {settings['step_size']:g} eps from random starts, c_max "
            f"{settings['c_max']:g}; seeds {', '.join(map(str, settings['seeds']))}.")


def _errors(axis: Axes, x: Sequence[float], columns: Sequence[Sequence[float]], training: str, line: str = "") -> None:
    """Means with their standard deviation, a column a place."""
    mean = [float(np.mean(c)) for c in columns]
    deviation = [float(np.std(c, ddof=1)) if len(c) > 1 else 0.0 for c in columns]
    axis.errorbar(x, mean, deviation, color=COLOURS[training], marker=MARKERS[training], linestyle=line, capsize=3,
                  label=NAMES[training])


def _draw_tables(numbers: Numbers, settings: Settings) -> Drawing:
    figure = new_figure(9.5, 4)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [5, 4]})
    for axis, which, columns, trainings in (
            (left, "white", {"clean": "clean", **ATTACKS}, tuple(NAMES)), (right, "black", ATTACKS, DEFENCES)):
        for k, training in enumerate(trainings):
            at = [i + 0.16 * (k - (len(trainings) - 1) / 2) for i in range(len(columns))]
            _errors(axis, at, [of(numbers, training, settings["eps"], per_cent(which, c)) for c in columns], training)
        axis.set_xticks(range(len(columns)), list(columns.values()))
        axis.set_ylabel("accuracy, % of test images")
        axis.grid(axis="y", alpha=0.3)
    left.legend(fontsize=8)
    left.set_title("white-box: the network itself is attacked", fontsize=10)
    right.set_title("black-box: a surrogate is attacked", fontsize=10)
    return Drawing(figure, _caption(settings, (
        "Accuracy on test images under attacks on the network itself (left) and on a network trained on PGD from "
        "another seed (right, on another scale): mean and standard deviation over seeds, "
        f"{numbers['test_images']} images.")))


def _draw_radii(numbers: Numbers, settings: Settings) -> Drawing:
    figure = new_figure(9.5, 4)
    left, right = figure.subplots(1, 2)
    tested, radii, eps = settings["tested"], sorted(settings["trained"]), settings["eps"]
    for training in DEFENCES:
        _errors(left, tested, [of(numbers, training, eps, lambda n, k=k: 100 * float(n["tested"][k]))
                               for k in range(len(tested))], training, "-")
        _errors(right, radii, [of(numbers, training, e, per_cent("white", "pgd-10")) for e in radii], training, "-")
    left.set_title(f"trained at eps {eps:g}", fontsize=10)
    left.set_xlabel("radius of the attack, in units of a pixel's range")
    right.set_title("trained and attacked at the same radius", fontsize=10)
    right.set_xlabel("radius of training and attack, in units of a pixel's range")
    for axis in (left, right):
        axis.set_ylabel("accuracy under PGD-10, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return Drawing(figure, _caption(settings, (
        "Accuracy under white-box PGD-10 against its radius: networks trained at one radius (left), and each trained "
        "at the radius of the attack (right); mean and standard deviation over seeds, "
        f"{numbers['test_images']} test images.")))


def _draw_fosc(numbers: Numbers, settings: Settings) -> Drawing:
    figure = new_figure(10.5, 3.6)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    highest = max(d for n in numbers["networks"] if n["training"] in DEFENCES and n["eps"] == settings["eps"]
                  for stored in n["fosc"]["stages"] for d in stored["density"])
    for axis, training in zip(axes, DEFENCES, strict=True):
        epochs = settings["curriculum_stages" if training == CURRICULUM else "stages"]
        mine = [n["fosc"]["stages"] for n in numbers["networks"] if n["training"] == training
                and n["eps"] == settings["eps"]]
        for k, name in enumerate(STAGES):
            density = np.mean([stages[k]["density"] for stages in mine], axis=0)
            axis.plot(numbers["grid"], density, LINES[name], color=COLOURS[training],
                      label=f"{name}: epoch {epochs[k]}")
        axis.set_title(NAMES[training], fontsize=10)
        axis.set_xlabel("FOSC, in units of the loss")
        axis.set_yscale("log")
        axis.set_ylim(LEAST_DENSITY, 2 * highest)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("density, per unit of FOSC")
    return Drawing(figure, _caption(settings, (
        "Distribution of FOSC over the examples that each training meets at an early, a middle and a late epoch, for "
        f"{numbers['watched']} training images: kernel density estimate, mean of the seeds; the vertical scale is "
        "logarithmic.")))


def _draw_rank(numbers: Numbers, settings: Settings) -> Drawing:
    figure = new_figure(9.5, 4)
    axes = figure.subplots(1, 2, sharey=True)
    radii = sorted({settings["eps"], *settings["trained"]})
    for axis, which, title in zip(axes, ("last", "common"), ("examples that each training meets",
                                                            "one PGD for all networks"), strict=True):
        for training in DEFENCES:
            for k, eps in enumerate(radii):
                mine = [n for n in numbers["networks"] if n["training"] == training and n["eps"] == eps]
                axis.scatter([n["fosc"][which]["mean"] for n in mine], [100 * n["white"]["pgd-20"] for n in mine],
                             s=25 + 30 * k, marker=MARKERS[training], facecolors="none", edgecolors=COLOURS[training],
                             label=NAMES[training] if k == len(radii) - 1 else None)
        axis.set_title(f"{title}:\nrho {correlation(numbers, which)}", fontsize=9)
        axis.set_xlabel("mean FOSC after the last epoch, in units of the loss")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("accuracy under PGD-20, %")
    sizes = ", ".join(f"{eps:g}" for eps in radii)
    return Drawing(figure, _caption(settings, (
        "Every network that was trained on attacks: its robustness at its training radius against mean FOSC on "
        f"{numbers['watched']} training images. The larger a mark, the larger the radius ({sizes}); rho: "
        "rank correlation inside each radius, mean and 95 % interval over seeds.")))


STUDY = Study("dynamic", "Dynamic, Curriculum and Standard adversarial training",
              "Wang et al., On the Convergence and Robustness of Adversarial Training (ICML 2019), Tables 1 and 2, "
              "Figures 4 and 5", MODES, measure, draw, judge, table)

if __name__ == "__main__":
    sys.exit(run(STUDY))
