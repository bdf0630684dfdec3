"""Recipes name methods and settings that exist, and cover what they promise."""

from __future__ import annotations

import pytest

from certify.adversarial.recipes import RECIPES
from certify.registry import METHODS, method_named
from certify.settings import resolve


@pytest.mark.parametrize("data", list(RECIPES))
def test_every_row_is_what_a_run_gets_by_default(data: str) -> None:
    for name, row in RECIPES[data].items():
        settings = resolve({"method": name, "data": data})
        assert method_named(name, **settings.method_settings).name == name
        assert settings.epochs == row["epochs"] and settings.lr == row["lr"]
        assert dict(settings.method_settings) == row["method_settings"]
        assert all(0 < m < settings.epochs for m in settings.milestones)
        assert settings.ramp_end == 0.0, "radii of attacks need no ramp here"
        assert resolve({"method": name, "data": data, "lr": 0.5}).lr == 0.5, "what is asked for wins"


def test_digits_have_a_row_for_every_method() -> None:
    ours = {name for name, entry in METHODS.items() if entry.where.startswith("certify.adversarial.")}
    assert ours | {"standard"} == set(RECIPES["digits"])
