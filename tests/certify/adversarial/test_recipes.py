"""Recipes name methods and settings that exist, and cover what they promise."""

from __future__ import annotations

from certify.adversarial.recipes import RECIPES, TRIED
from certify.registry import METHODS, method_named


def test_every_row_makes_a_method_and_digits_has_one_for_each() -> None:
    for rows in RECIPES.values():
        for name, recipe in rows.items():
            assert method_named(name, **recipe.settings).name == name
            assert recipe.epochs > 0 and recipe.lr > 0 and recipe.optimizer in ("adam", "sgd")
            assert all(0 < share < 1 for share in recipe.milestones)
    ours = {name for name, where in METHODS.items() if where.startswith("certify.adversarial.")}
    assert ours | {"standard"} == set(RECIPES["digits"])
    assert all(recipe.source == TRIED for recipe in RECIPES["digits"].values())
    assert all(recipe.source != TRIED for recipe in RECIPES["mnist"].values())
