"""Recipes name settings that there are, of methods that there are."""

from __future__ import annotations

import pytest

from certify.recipes import RECIPES, recipe
from certify.registry import METHODS, method_named
from certify.settings import resolve

ROWS = [(name, data, eps) for name, found in RECIPES.items() for data, rows in found.items() for eps in rows]


@pytest.mark.parametrize("name", METHODS)
def test_methods_have_the_name_under_which_they_are_found(name: str) -> None:
    assert method_named(name).name == name


@pytest.mark.parametrize(("name", "data", "eps"), ROWS)
def test_a_recipe_makes_its_run_and_method(name: str, data: str, eps: float) -> None:
    settings = resolve({"method": name, "data": data, "eps": eps})
    method = method_named(name, **settings.method_settings)
    for key, value in RECIPES[name][data][eps].items():
        owner, _, rest = key.rpartition(".")
        assert getattr(method if owner else settings, rest) == value
    assert settings.train_eps >= 1


def test_the_nearest_radius_counts_and_what_is_given_wins() -> None:
    assert recipe("sabr", "mnist", 0.12)["method.shrink"] == 0.4
    assert recipe("sabr", "mnist", 0.4)["method.shrink"] == 0.9
    assert "method.shrink" not in recipe("sabr", "cifar10", 0.1)
    settings = resolve({"method": {"name": "sabr", "shrink": 0.5}, "eps": "0.05", "train_eps": 1.0})
    assert settings.method_settings == {"shrink": 0.5, "steps": 4} and settings.train_eps == 1.0
    with pytest.raises(ValueError, match="eps: expected a number"):
        resolve({"method": "sabr", "eps": "large"})
