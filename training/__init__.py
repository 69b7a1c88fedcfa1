"""Trains models, evaluates them and packs them as TorchServe archives."""

import os

# Torch's threads spin while they wait for each other, by default for so long that two trainings on
# two cores, or one beside any other load, are seven times slower. This limit has no measurable cost
# for one that runs alone. OpenMP reads it when torch is loaded, which is after this.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
