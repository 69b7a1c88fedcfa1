"""The models that there are. A new one is a module here, one in `handler/`, and a line below."""

from training import mnist, xor

RECIPES = {module.RECIPE.name: module.RECIPE for module in (mnist, xor)}
