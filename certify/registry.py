"""Training methods by name. Nothing is imported before it is used."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from certify.entry import Entry, fitted

if TYPE_CHECKING:
    from certify.method import Method


def _attacked(where: str, summary: str, source: str) -> Entry:
    return Entry(f"certify.adversarial.{where}", summary, source)


METHODS = {
    "standard": Entry("certify.method:Standard", "cross-entropy on clean inputs"),
    "ibp": Entry("certify.losses.ibp:Ibp", "interval bounds", "arXiv:1810.12715"),
    "fast-ibp": Entry("certify.losses.fast_ibp:FastIbp", "interval bounds with a short warm-up", "arXiv:2103.17268"),
    "sabr": Entry("certify.losses.sabr:Sabr", "interval bounds of a small box around an attack", "arXiv:2210.04871"),
    "taps": Entry("certify.losses.taps:Taps", "intervals, and an attack behind them", "arXiv:2305.04574"),
    "staps": Entry("certify.losses.taps:Staps", "TAPS over SABR's small box", "arXiv:2305.04574"),
    "cc-ibp": Entry("certify.losses.expressive:CcIbp", "attacked and bounded margins, mixed", "arXiv:2305.13991"),
    "mtl-ibp": Entry("certify.losses.expressive:MtlIbp", "attacked and bounded loss, mixed", "arXiv:2305.13991"),
    "exp-ibp": Entry("certify.losses.expressive:ExpIbp", "attacked and bounded loss, mixed as powers",
                     "arXiv:2305.13991"),
    "crown-ibp": Entry("certify.losses.crown_ibp:CrownIbp", "one backward pass on interval bounds, loss fusion",
                       "arXiv:1906.06316"),
    "zonotope": Entry("certify.losses.zonotope:ZonotopeLoss", "zonotopes (DiffAI)", "ICML 2018"),
    "wong-kolter": Entry("certify.losses.wong_kolter:WongKolter", "the dual bound, random projections",
                         "arXiv:1711.00851, arXiv:1805.12514"),
    "lipschitz-margin": Entry("certify.losses.lipschitz_margin:LipschitzMargin", "operator norms against the margin",
                              "arXiv:1802.04034"),
    "parseval": Entry("certify.losses.parseval:Parseval", "layers kept close to tight frames", "arXiv:1704.08847"),
    "smoothing": Entry("certify.losses.noise:Noise", "Gaussian noise, for randomised smoothing",
                       "arXiv:1902.02918"),
    "pgd": _attacked("pgd:Pgd", "projected gradient ascent", "arXiv:1706.06083"),
    "fgsm": _attacked("fgsm:Fgsm", "one step from the input", "arXiv:1412.6572"),
    "fgsm-pgd": _attacked("fgsm_pgd:FgsmPgd", "one step in the first epochs, then PGD", "arXiv:2112.08304"),
    "fgsm-rs": _attacked("fgsm_rs:FgsmRs", "fast: one step from a random start, guarded", "arXiv:2001.03994"),
    "n-fgsm": _attacked("n_fgsm:NFgsm", "one step after strong noise", "arXiv:2202.01181"),
    "free": _attacked("free:Free", "one pass for weights and perturbation, replayed", "arXiv:1904.12843"),
    "yopo": _attacked("yopo:Yopo", "inner steps through the first layer alone", "arXiv:1905.00877"),
    "trades": _attacked("trades:Trades", "clean loss and divergence", "arXiv:1901.08573"),
    "mart": _attacked("mart:Mart", "misclassified examples count more", "ICLR 2020"),
    "curriculum": _attacked("curriculum:Curriculum", "more steps, lesson by lesson", "arXiv:1805.04807"),
    "dynamic": _attacked("dynamic:Dynamic", "as many steps as stationarity asks for", "arXiv:2112.08304"),
    "guided": _attacked("guided:Guided", "more steps as gradients grow", "arXiv:2103.03076"),
    "distillation": _attacked("distillation:Distillation", "soft labels of a teacher", "arXiv:1511.04508"),
}


def method_named(name: str, **settings: Any) -> Method:
    """The method object. Raises ValueError for an unknown name or setting, or a value that does not fit."""
    kind = _class_of(name)
    kinds = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**fitted(f"method {name}", settings, kinds))


def bounds_sets(name: str) -> bool:
    """Whether a method's loss needs bounds."""
    return _class_of(name).bounds_sets


def _class_of(name: str) -> type[Method]:
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    found: type[Method] = METHODS[name].load()
    return found
