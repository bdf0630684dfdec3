"""All attacks by the names of their papers, in lower case. A table without PyTorch: classes are loaded when used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifier.attacks.base import Attack

FIXED = "white box, inside eps"
NEAREST = "white box, minimum norm"
BLACK = "black box"
BEYOND = "beyond additive"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Entry:
    """One attack: where its class is, the norms it works in, its kind, a few words, and its source."""

    where: str
    norms: tuple[str, ...]
    kind: str
    summary: str
    source: str


def _entry(where: str, norms: str, kind: str, summary: str, source: str) -> Entry:
    return Entry(f"verifier.attacks.{where}", tuple(norms.split()), kind, summary, source)


ATTACKS = {
    "fgsm": _entry("pgd:Fgsm", "inf 2 1", FIXED, "one step of length eps", "arXiv:1412.6572"),
    "bim": _entry("pgd:Bim", "inf 2 1", FIXED, "projected gradient from the original", "arXiv:1607.02533"),
    "pgd": _entry("pgd:Pgd", "inf 2 1", FIXED, "projected gradient, random starts", "arXiv:1706.06083"),
    "mi-fgsm": _entry("pgd:MiFgsm", "inf 2 1", FIXED, "BIM with momentum", "arXiv:1710.06081"),
    "cw-inf": _entry("pgd:CwInf", "inf", FIXED, "PGD on the margin", "arXiv:1608.04644, arXiv:2112.08304"),
    "apgd-ce": _entry("apgd:ApgdCe", "inf 2 1", FIXED, "adaptive steps, cross-entropy", "arXiv:2003.01690"),
    "apgd-dlr": _entry("apgd:ApgdDlr", "inf 2 1", FIXED, "adaptive steps, logit ratio", "arXiv:2003.01690"),
    "apgd-t": _entry("apgd:ApgdTargeted", "inf 2 1", FIXED, "the same towards nine classes", "arXiv:2003.01690"),
    "fw": _entry("frank_wolfe:FrankWolfe", "inf 2 1", FIXED, "Frank-Wolfe with momentum", "arXiv:1811.10828"),
    "fmn": _entry("fmn:Fmn", "inf 2 1 0", NEAREST, "fast minimum norm", "arXiv:2102.12827"),
    "ddn": _entry("ddn:Ddn", "2", NEAREST, "decoupled direction and norm", "arXiv:1811.09600"),
    "fab": _entry("fab:Fab", "inf 2 1", NEAREST, "fast adaptive boundary", "arXiv:1907.02044"),
    "fab-t": _entry("fab:FabTargeted", "inf 2 1", NEAREST, "the same towards nine classes", "arXiv:1907.02044"),
    "deepfool": _entry("deepfool:DeepFool", "inf 2", NEAREST, "linearised boundaries", "arXiv:1511.04599"),
    "cw": _entry("cw:CarliniWagner", "2", NEAREST, "penalty and binary search", "arXiv:1608.04644"),
    "bb": _entry("brendel_bethge:BrendelBethge", "inf 2 1 0", NEAREST, "along the boundary", "arXiv:1907.01003"),
    "sigma-zero": _entry("sigma_zero:SigmaZero", "0", NEAREST, "smoothed l_0", "arXiv:2402.01879"),
    "jsma": _entry("jsma:Jsma", "0", NEAREST, "saliency map, pairs of features", "arXiv:1511.07528"),
    "rgf": _entry("gradient_free:RandomGradientFree", "inf 2 1", BLACK, "Gaussian smoothing, forward or central",
                  "Nesterov and Spokoiny 2017, doi:10.1007/s10208-015-9296-2"),
    "zoo": _entry("zoo:Zoo", "2", BLACK, "coordinate differences", "arXiv:1708.03999"),
    "nes": _entry("gradient_free:Nes", "inf 2 1", BLACK, "antithetic Gaussian directions", "arXiv:1804.08598"),
    "spsa": _entry("gradient_free:Spsa", "inf 2 1", BLACK, "random signs, Adam", "arXiv:1802.05666"),
    "square": _entry("square:Square", "inf 2", BLACK, "random search over squares", "arXiv:1912.00049"),
    "hopskipjump": _entry("hopskipjump:HopSkipJump", "inf 2", BLACK, "labels only, along the boundary",
                          "arXiv:1904.02144"),
    "mads": _entry("mads:Mads", "inf 2 1", BLACK, "labels only, mesh adaptive direct search", "arXiv:2009.06114"),
    "transfer": _entry("transfer:Transfer", "inf 2 1", BLACK, "adversarial examples of a surrogate",
                       "arXiv:1605.07277"),
    "spatial": _entry("spatial:Spatial", "inf 2 1 0", BEYOND, "rotation and translation", "arXiv:1712.02779"),
    "flow": _entry("flow:Flow", "inf 2 1 0", BEYOND, "spatial flow", "arXiv:1801.02612"),
    "uap": _entry("universal:Universal", "inf 2 1", BEYOND, "one perturbation for all inputs", "arXiv:1610.08401"),
    "guap": _entry("guap:CombinedUniversal", "inf", BEYOND, "one flow and one perturbation for all inputs",
                   "arXiv:2010.07788"),
    "smooth-mask": _entry("smooth_mask:SmoothMask", "inf 2 1", BEYOND, "few pixels, chosen by smoothed gradients",
                          "arXiv:1706.03825, arXiv:2101.00989"),
    "autoattack": _entry("autoattack:AutoAttack", "inf 2 1", ENSEMBLE, "the standard ensemble", "arXiv:2003.01690"),
}


def attack_class(name: str) -> type[Attack]:
    """The class of a named attack. Raises ValueError, with the names there are."""
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    module, _, attribute = ATTACKS[name].where.partition(":")
    found: type[Attack] = getattr(importlib.import_module(module), attribute)
    return found


def attack_named(name: str, **settings: Any) -> Attack:
    """An attack with settings; a setting it does not have raises ValueError."""
    known = settings_of(name)
    for setting in settings:
        if setting not in known:
            raise ValueError(f"{name} has no setting {setting!r}; it has {', '.join(known) or 'none'}")
    for field in fields(attack_class(name)):
        if field.name in settings and not _fits(settings[field.name], str(field.type)):
            raise ValueError(f"{name}: {field.name} must be {field.type}, got {settings[field.name]!r}")
    return attack_class(name)(**settings)


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a plain annotated type; of other types nothing is said."""
    plain: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
    parts = annotation.split(" | ")
    if not set(parts) <= set(plain):
        return True
    return any(isinstance(value, plain[part]) and (part == "bool" or not isinstance(value, bool)) for part in parts)


def settings_of(name: str) -> tuple[str, ...]:
    """The names of an attack's settings."""
    return tuple(field.name for field in fields(attack_class(name)))
