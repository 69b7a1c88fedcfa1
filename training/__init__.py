"""Trains models, checks them and packs them as TorchServe archives."""

import os

# Torch's threads wait for each other by spinning, by default for so long that two trainings on two
# cores, or one beside anything else, are seven times slower; this costs a lone one nothing that can
# be measured. Read when torch is loaded, which is after this.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
