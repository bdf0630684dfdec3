"""The page on attacks names them all, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.verifier.attacks.problems import linear
from verifier.attacks.registry import ATTACKS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "attacks.md"


def test_every_attack_is_named_under_its_kind() -> None:
    rows = dict(re.findall(r"^\| ([^|`]+) \| ((?:`[\w-]+` ?)+)\|$", PAGE.read_text(), re.M))
    named = {name: kind.strip() for kind, names in rows.items() for name in re.findall(r"`([\w-]+)`", names)}
    assert named == {name: entry.kind for name, entry in ATTACKS.items()}


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    known = linear(float("inf"), clip=True)
    names: dict[str, object] = {"model": known.model, "x": known.x, "label": known.label}
    exec(code, names)  # the page's own lines
    result = names["result"]
    assert torch.isfinite(result.distance).all()  # type: ignore[attr-defined]
