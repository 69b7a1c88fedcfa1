"""The registered models. A new one is a module here, one in `handler/`, and a name below."""

from importlib import import_module
from typing import TYPE_CHECKING

# Packing and listing need the names only, and importing torch takes five times as long as they do.
if TYPE_CHECKING:
    from training.recipe import Recipe

MODELS = ("mnist", "xor")


def load_recipe(name: str) -> "Recipe":
    """The recipe of a registered model, `RECIPE` in `training/{name}.py`."""
    recipe: Recipe = import_module(f"training.{name}").RECIPE
    return recipe
