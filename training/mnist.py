"""MNIST digits: a small convolutional network, or a fully connected one.

Recipe of `cnn`: three 3x3 convolutions of 16, 32 and 64 channels (1.9 million multiply-adds an
image), 8 epochs of AdamW under a one-cycle schedule, label smoothing 0.02, and random rotation,
scaling, shear and shift of every training image. README.md has the accuracy measured.
"""

import math
from itertools import pairwise
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from training.layers import fully_connected
from training.mnist_data import mnist
from training.recipe import Architecture, Recipe
from training.settings import OF_NETWORK, Settings


class Normalise(nn.Module):
    """Scales pixels to mean 0 and variance 1."""

    # Of all training pixels.
    mean: Final = 33.318
    std: Final = 78.567

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From pixels, float32 [n, 28, 28] of 0 to 255, to [n, 1, 28, 28]."""
        return ((x - self.mean) / self.std).unsqueeze(1)


def cnn(_: Settings) -> nn.Module:
    """[n, 1, 28, 28] to logits [n, 10]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((1, 16, 32, 64)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.MaxPool2d(2),
            nn.ReLU(),  # before the pooling it would do the same on four times as many numbers
        ]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 3 * 3, 10))
    # With channels first, pooling is most of the forward on a CPU: 205 us an image at batch 32 on
    # one core, and 58 with channels last.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def mlp(settings: Settings) -> nn.Module:
    """[n, 1, 28, 28] to logits [n, 10]."""
    return nn.Sequential(nn.Flatten(), fully_connected(784, 10, settings))


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random affine map of each image, uint8 [n, 28, 28] to float32 [n, 28, 28].

    Rotation up to 12 degrees, scale 0.9 to 1.1, shear up to 0.15, shift up to 2 pixels.
    """

    def uniform(limit: float, *shape: int) -> torch.Tensor:
        values = torch.rand(len(x), *shape, generator=generator, device=x.device)
        return (values * 2 - 1) * limit

    angle, scale, shear = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.15)
    rows = torch.stack(
        [scale * angle.cos(), shear - scale * angle.sin(), scale * angle.sin(), scale * angle.cos()]
    )
    shift = uniform(2 / 14, 2, 1)  # in half widths, as affine_grid counts
    theta = torch.cat([rows.T.reshape(-1, 2, 2), shift], dim=2)
    images = x.float().unsqueeze(1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False).squeeze(1)


RECIPE = Recipe(
    name="mnist",
    classes=tuple("0123456789"),
    input_shape=(28, 28),
    input_bounds=(0, 255),
    architectures={
        "cnn": Architecture(
            build=cnn,
            min_accuracy=0.99,
            settings=Settings(
                label_smoothing=0.02,
                learning_rate=6e-3,
                schedule="one_cycle",
                weight_decay=1e-2,
                epochs=8,
            ),
            augment=augment,
        ),
        "mlp": Architecture(
            build=mlp,
            min_accuracy=0.97,
            settings=Settings(
                hidden=(1024, 512),
                batch_norm=True,
                label_smoothing=0.02,
                learning_rate=6e-3,
                schedule="one_cycle",
                weight_decay=1e-2,
                epochs=12,
                batch_size=256,
            ),
            uses=OF_NETWORK,
            augment=augment,
        ),
    },
    data=mnist,
    normalise=Normalise(),
    normalisation=f"(x - {Normalise.mean}) / {Normalise.std}",
    usage=("curl -T samples/seven.png URL",),
)
