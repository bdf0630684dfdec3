"""Recipes name methods and settings that there are."""

from __future__ import annotations

import pytest

from certify.recipes import RECIPES, Recipe
from certify.registry import METHODS, method_named


@pytest.mark.parametrize("name", METHODS)
def test_methods_have_the_name_under_which_they_are_found(name: str) -> None:
    assert method_named(name).name == name


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, rows in RECIPES.items() for data in rows])
def test_a_recipe_makes_its_method(name: str, data: str) -> None:
    recipe: Recipe = RECIPES[name][data]
    method = method_named(name, **recipe.settings)
    assert all(getattr(method, key) == value for key, value in recipe.settings.items())
    assert 0 <= recipe.natural < 1 and recipe.train_eps >= 1 and recipe.l1 >= 0
    assert recipe.learning_rate > 0 and 0 < recipe.ramp < recipe.epochs
    assert recipe.average_from is None or recipe.ramp < recipe.average_from < recipe.epochs
