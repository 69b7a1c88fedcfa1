"""The models that there are. A new one is a module here, one in `handler/`, and a name below."""

from importlib import import_module

from training.recipe import Recipe

MODELS = ("mnist", "xor")

RECIPES: dict[str, Recipe] = {name: import_module(f"training.{name}").RECIPE for name in MODELS}
