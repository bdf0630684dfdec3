"""Which library offers which attack in which norm, and the settings that let it take a given number of steps.

A row says what is called and how `steps` becomes its settings, so that every attack has about as many gradients an
image as `steps` says (attacks without gradients: as many queries). Attacks that take a Jacobian in each iteration get
fewer iterations; DeepFool, JSMA and VFGA may take up to `steps` iterations and stop early. What was really spent is
counted (`network.Counted`). Where nothing is said here a setting is the library's own. Step sizes and the like that are
said are those of a few tried that did best with 200 steps on two MNIST networks (README.md): the libraries' own are
made for 1,000 steps and more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LIBRARIES = ("foolbox", "torchattacks", "advlib", "art")
NORMS = ("inf", "2", "1", "0")
ORDER = {"inf": math.inf, "2": 2, "1": 1, "0": 0}
SEARCHES = 9  # of Carlini and Wagner's constant


@dataclass(frozen=True)
class Budget:
    """What an attack is given: steps, the radius of its ball if it needs one, classes and pixels of the data."""

    steps: int
    eps: float
    classes: int
    pixels: int
    seed: int = 0

    def share(self, parts: int) -> int:
        return max(1, self.steps // parts)


Settings = Callable[[Budget], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    attack: str
    library: str
    norm: str
    call: str                # the class or function of the library
    settings: Settings
    ball: bool = False       # looks inside a ball of radius eps; else for the nearest adversarial image
    unit: str = "gradients"  # what `steps` bounds: gradients, queries or iterations
    start: bool = False      # begins at an adversarial image: the nearest of the data that has another label
    alone: bool = False      # one image a call
    compiles: bool = False   # at its first call: that call is not timed
    note: str = ""


ROWS: list[Row] = []


def add(library: str, attack: str, calls: dict[str, str], settings: Callable[[Budget, str], dict[str, Any]],
        **fields: Any) -> None:
    """A row a norm: `calls` says what is called for it."""
    for norm, call in calls.items():
        ROWS.append(Row(attack, library, norm, call, lambda b, norm=norm: settings(b, norm), **fields))


def each(names: str, call: str) -> dict[str, str]:
    """The same call for several norms, or one whose name holds the norm."""
    return {norm: call.format(norm={"inf": "Linf"}.get(norm, f"L{norm}")) for norm in names.split()}


def queries_of_hop_skip_jump(steps: int, first: int = 100) -> int:
    """Iterations whose queries, `first` sqrt(i) and some 25 for searches along lines, sum up to `steps`."""
    spent, iterations = 0.0, 0
    while spent + first * math.sqrt(iterations + 1) + 25 <= steps:
        spent += first * math.sqrt(iterations + 1) + 25
        iterations += 1
    return max(1, iterations)


def rate(budget: Budget) -> float:
    """Carlini and Wagner's learning rate: 0.01, made for 1,000 iterations a search and more, gets nowhere in 22."""
    return min(0.5, max(0.01, 10 / budget.share(SEARCHES)))


RELATIVE = 2.5  # a PGD step is this times eps / steps (Madry et al., arXiv:1706.06083)

# ---------------------------------------------------------------------- foolbox

add("foolbox", "fgsm", each("inf 2 1", "{norm}FastGradientAttack"), lambda b, n: {}, ball=True, unit="iterations")
add("foolbox", "bim", each("inf 2 1", "{norm}BasicIterativeAttack"),
    lambda b, n: {"steps": b.steps, "rel_stepsize": RELATIVE / b.steps}, ball=True)
add("foolbox", "pgd", each("inf 2 1", "{norm}ProjectedGradientDescentAttack"),
    lambda b, n: {"steps": b.steps, "rel_stepsize": RELATIVE / b.steps}, ball=True)
add("foolbox", "mi-fgsm", each("inf 2 1", "{norm}MomentumIterativeFastGradientMethod"),
    lambda b, n: {"steps": b.steps, "rel_stepsize": 1 / b.steps}, ball=True)
add("foolbox", "fmn", {"inf": "LInfFMNAttack", "2": "L2FMNAttack", "1": "L1FMNAttack", "0": "L0FMNAttack"},
    lambda b, n: {"steps": b.steps, "max_stepsize": {"inf": 10.0, "2": 0.3, "1": 0.3, "0": 10.0}[n]})
add("foolbox", "ddn", each("2", "DDNAttack"), lambda b, n: {"steps": b.steps, "gamma": 0.1})
add("foolbox", "deepfool", each("inf 2", "{norm}DeepFoolAttack"),
    lambda b, n: {"steps": b.steps, "candidates": b.classes}, unit="iterations")
add("foolbox", "cw", each("2", "L2CarliniWagnerAttack"),
    lambda b, n: {"binary_search_steps": SEARCHES, "steps": b.share(SEARCHES), "stepsize": rate(b)})
add("foolbox", "ead", each("1", "EADAttack"),
    lambda b, n: {"binary_search_steps": SEARCHES, "steps": b.share(SEARCHES), "decision_rule": "L1"})
add("foolbox", "bb", {"inf": "LinfinityBrendelBethgeAttack", "2": "L2BrendelBethgeAttack",
                      "1": "L1BrendelBethgeAttack", "0": "L0BrendelBethgeAttack"},
    lambda b, n: {"steps": b.steps}, start=True, alone=True, compiles=True,
    note="one image a call: its trust region grows with the batch")
add("foolbox", "hopskipjump", each("inf 2", "HopSkipJumpAttack"),
    lambda b, n: {"steps": queries_of_hop_skip_jump(b.steps), "constraint": "linf" if n == "inf" else "l2"},
    unit="queries", start=True)

# ---------------------------------------------------------------------- torchattacks

add("torchattacks", "fgsm", each("inf", "FGSM"), lambda b, n: {"eps": b.eps}, ball=True, unit="iterations")
add("torchattacks", "bim", each("inf", "BIM"),
    lambda b, n: {"eps": b.eps, "alpha": RELATIVE * b.eps / b.steps, "steps": b.steps}, ball=True)
add("torchattacks", "pgd", {"inf": "PGD", "2": "PGDL2"},
    lambda b, n: {"eps": b.eps, "alpha": RELATIVE * b.eps / b.steps, "steps": b.steps}, ball=True)
add("torchattacks", "mi-fgsm", each("inf", "MIFGSM"),
    lambda b, n: {"eps": b.eps, "alpha": b.eps / b.steps, "steps": b.steps}, ball=True)
add("torchattacks", "apgd-ce", each("inf 2", "APGD"),
    lambda b, n: {"norm": f"L{n}", "eps": b.eps, "steps": b.steps, "loss": "ce", "seed": b.seed}, ball=True)
add("torchattacks", "apgd-dlr", each("inf 2", "APGD"),
    lambda b, n: {"norm": f"L{n}", "eps": b.eps, "steps": b.steps, "loss": "dlr", "seed": b.seed}, ball=True)
add("torchattacks", "apgd-t", each("inf 2", "APGDT"),
    lambda b, n: {"norm": f"L{n}", "eps": b.eps, "steps": b.share(b.classes - 1), "n_classes": b.classes,
                  "seed": b.seed}, ball=True)
add("torchattacks", "fab", each("inf 2", "FAB"),
    lambda b, n: {"norm": f"L{n}", "eps": 1e9, "steps": b.share(b.classes), "n_classes": b.classes, "seed": b.seed},
    note="an iteration takes the gradients of all logits; eps only bounds what counts as found; its norm 1 raises")
add("torchattacks", "cw", each("2", "CW"), lambda b, n: {"steps": b.steps, "c": 10, "lr": 0.05},
    note="one constant, no search")
add("torchattacks", "deepfool", each("2", "DeepFool"), lambda b, n: {"steps": b.steps}, unit="iterations")
add("torchattacks", "jsma", each("0", "JSMA"),
    lambda b, n: {"theta": 1.0, "gamma": min(1.0, 2 * b.steps / b.pixels)}, unit="iterations",
    note="two pixels an iteration towards label + 1, ten classes")
add("torchattacks", "square", each("inf 2", "Square"),
    lambda b, n: {"norm": f"L{n}", "eps": b.eps, "n_queries": b.steps, "seed": b.seed}, ball=True, unit="queries")
add("torchattacks", "autoattack", each("inf 2", "AutoAttack"),
    lambda b, n: {"norm": f"L{n}", "eps": b.eps, "n_classes": b.classes, "seed": b.seed}, ball=True, unit="iterations",
    note="each gradient attack takes `steps` iterations (the library: 10, the paper: 100); Square 5,000 queries")

# ---------------------------------------------------------------------- adv-lib

add("advlib", "pgd", each("inf", "pgd_linf"),
    lambda b, n: {"ε": b.eps, "steps": b.steps, "relative_step_size": RELATIVE / b.steps}, ball=True)
for loss in ("ce", "dlr"):
    add("advlib", f"apgd-{loss}", each("inf 2 1", "apgd"),
        lambda b, n, loss=loss: {"eps": b.eps, "norm": ORDER[n], "n_iter": b.steps, "loss_function": loss,
                                 "use_large_reps": n == "1"}, ball=True)
add("advlib", "apgd-t", each("inf 2 1", "apgd_targeted"),
    lambda b, n: {"eps": b.eps, "norm": ORDER[n], "n_iter": b.share(b.classes - 1), "use_large_reps": n == "1"},
    ball=True)
add("advlib", "fab", each("inf 2 1", "fab"), lambda b, n: {"norm": ORDER[n], "n_iter": b.share(b.classes - 1)},
    note="an iteration takes the gradients of all other classes")
add("advlib", "fab-t", each("inf 2 1", "fab"),
    lambda b, n: {"norm": ORDER[n], "n_iter": b.share(b.classes - 1), "targeted_restarts": True})
add("advlib", "fmn", each("inf 2 1 0", "fmn"),
    lambda b, n: {"norm": ORDER[n], "steps": b.steps, "α_init": {"inf": 10.0, "2": 0.1, "1": 0.3, "0": 10.0}[n]})
add("advlib", "ddn", each("2", "ddn"), lambda b, n: {"steps": b.steps, "levels": None, "γ": 0.1},
    note="no quantisation")
add("advlib", "deepfool", each("inf 2", "df"), lambda b, n: {"norm": ORDER[n], "steps": b.steps}, unit="iterations")
add("advlib", "cw", {"2": "carlini_wagner_l2"},
    lambda b, n: {"binary_search_steps": SEARCHES, "max_iterations": max(10, b.share(SEARCHES)),
                  "learning_rate": rate(b)},
    note="ten iterations a search at least: it divides by a tenth of them")
add("advlib", "cw", {"inf": "carlini_wagner_linf"},
    lambda b, n: {"max_iterations": b.share(12), "learning_rate": 0.1, "initial_const": 0.1, "const_factor": 10},
    unit="iterations", note="searches of steps / 12 iterations each, as many as it takes")
add("advlib", "sigma-zero", each("0", "sigma_zero"), lambda b, n: {"num_steps": b.steps})
add("advlib", "pdgd", each("2", "pdgd"), lambda b, n: {"num_steps": b.steps})
add("advlib", "pdpgd", each("inf 2 1 0", "pdpgd"),
    lambda b, n: {"norm": ORDER[n], "num_steps": b.steps,
                  "dual_ratio_init": {"inf": 1.0, "2": 1.0, "1": 0.1, "0": 0.01}[n]})
add("advlib", "alma", each("2 1", "alma"),
    lambda b, n: {"distance": f"l{n}", "num_steps": b.steps, "init_lr_distance": 1.0})
add("advlib", "tr", each("inf 2", "tr"),
    lambda b, n: {"p": ORDER[n], "iter": b.steps, "c": b.classes - 1, "adaptive": True}, unit="iterations")
add("advlib", "vfga", each("0", "vfga"), lambda b, n: {"targeted": False, "max_iter": b.steps}, unit="iterations")

# ---------------------------------------------------------------------- adversarial-robustness-toolbox

add("art", "fgsm", each("inf 2 1", "FastGradientMethod"), lambda b, n: {"norm": ORDER[n], "eps": b.eps}, ball=True,
    unit="iterations")
add("art", "bim", each("inf", "BasicIterativeMethod"),
    lambda b, n: {"eps": b.eps, "eps_step": RELATIVE * b.eps / b.steps, "max_iter": b.steps}, ball=True)
add("art", "pgd", each("inf 2 1", "ProjectedGradientDescent"),
    lambda b, n: {"norm": ORDER[n], "eps": b.eps, "eps_step": RELATIVE * b.eps / b.steps, "max_iter": b.steps,
                  "num_random_init": 1}, ball=True)
add("art", "mi-fgsm", each("inf 2 1", "MomentumIterativeMethod"),
    lambda b, n: {"norm": ORDER[n], "eps": b.eps, "eps_step": b.eps / b.steps, "max_iter": b.steps}, ball=True)
for loss, name in (("ce", "cross_entropy"), ("dlr", "difference_logits_ratio")):
    add("art", f"apgd-{loss}", each("inf 2 1", "AutoProjectedGradientDescent"),
        lambda b, n, name=name: {"norm": ORDER[n], "eps": b.eps, "eps_step": 2 * b.eps, "max_iter": b.steps,
                                 "nb_random_init": 1, "loss_type": name}, ball=True)
add("art", "deepfool", each("2", "DeepFool"), lambda b, n: {"max_iter": b.steps, "nb_grads": b.classes},
    unit="iterations")
add("art", "cw", {"2": "CarliniL2Method"},
    lambda b, n: {"binary_search_steps": SEARCHES, "max_iter": b.share(SEARCHES), "learning_rate": rate(b)})
add("art", "cw", {"inf": "CarliniLInfMethod"}, lambda b, n: {"max_iter": b.share(20)}, unit="iterations",
    note="searches of steps / 20 iterations until the constant is at its largest")
add("art", "bb", each("inf 2 1 0", "BrendelBethgeAttack"), lambda b, n: {"norm": ORDER[n], "steps": b.steps},
    start=True, alone=True, compiles=True, note="one image a call: its trust region grows with the batch")
add("art", "jsma", each("0", "SaliencyMapMethod"),
    lambda b, n: {"theta": 1.0, "gamma": min(1.0, 2 * b.steps / b.pixels)}, unit="iterations",
    note="two pixels an iteration towards a random label")
add("art", "square", each("inf 2", "SquareAttack"),
    lambda b, n: {"norm": ORDER[n], "eps": b.eps, "max_iter": b.steps}, ball=True, unit="queries")
add("art", "hopskipjump", each("inf 2", "HopSkipJump"),
    lambda b, n: {"norm": ORDER[n], "max_iter": queries_of_hop_skip_jump(b.steps)}, unit="queries", start=True)
add("art", "zoo", each("2", "ZooAttack"),
    lambda b, n: {"max_iter": b.share(256), "nb_parallel": min(128, b.pixels), "use_resize": False,
                  "use_importance": False, "batch_size": 1},
    unit="queries", note="an iteration asks twice for each of 128 pixels")
add("art", "autoattack", each("inf 2", "AutoAttack"), lambda b, n: {"norm": ORDER[n], "eps": b.eps}, ball=True,
    unit="iterations", note="the library's own four attacks (APGD with CE and DLR, DeepFool, Square), `steps` unused")


class NoSuchAttack(ValueError):
    """No row of the table: what there is instead is said."""


def find(attack: str, library: str, norm: str) -> Row:
    for row in ROWS:
        if (row.attack, row.library, row.norm) == (attack, library, norm):
            return row
    here = [r.norm for r in ROWS if (r.attack, r.library) == (attack, library)]
    elsewhere = sorted({f"{r.library} {r.norm}" for r in ROWS if r.attack == attack and r.library != library})
    has = f"norms {', '.join(here)}" if here else "not at all"
    raise NoSuchAttack(f"{library} has no {attack} in norm {norm} ({has}); others: {', '.join(elsewhere) or 'none'}")


def listed(budget: Budget) -> list[dict[str, Any]]:
    """The table as plain values, with the settings that `budget` gives."""
    return [{"attack": r.attack, "library": r.library, "norm": r.norm, "call": r.call, "needs_eps": r.ball,
             "steps_bound": r.unit, "start": r.start, "one_image_a_call": r.alone, "note": r.note,
             "settings": {k: "inf" if v == math.inf else v for k, v in r.settings(budget).items()}} for r in ROWS]
