"""Explanations by occlusion: by how much the answer's probability falls when a part is hidden.

Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2
(https://arxiv.org/abs/1311.2901). It needs forwards only, so that frozen TorchScript and CUDA
graphs serve it as they are.
"""

import math
from collections.abc import Callable

import torch

# Up to 225 forwards each, and 72 for an average digit: 16 digits take 45 ms on one core, and 16
# pictures that are all ink 140.
MAX_EXPLAINED = 16
# Windows overlap by half, and this many strides make a side: for 28x28, windows of 4x4. When the
# 10 % of a digit's ink that ranks highest was deleted, its probability fell by 0.45 (random ink:
# 0.07; 200 test images). With 5x5 it was 0.36, with 7x7 0.27; with single pixels or 3x3, which are
# two to three times as many forwards, 0.48.
_STRIDES_A_SIDE = 14
# Sizes up to this are warm (handler/scripted.py), and larger ones cost no less an instance.
_BATCH = 64


class Occlusion:
    """Explains the answers of one model.

    Args:
        forward: the model: probabilities, float64 [n, classes], of instances, float32 [n, *shape].
        shape: of one instance. Where it has two dimensions or more, windows of the last two are
            hidden, through all others; else single numbers.
        baseline: the number that stands for nothing there, which what is hidden becomes.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        shape: tuple[int, ...],
        baseline: float,
    ) -> None:
        self._forward = forward
        self._baseline = torch.tensor(baseline)
        self._masks = _masks(shape)
        self._weights = self._masks.double() / self._masks.sum(0)

    @torch.inference_mode()
    def __call__(self, instances: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Explain the answers to a few instances.

        Args:
            instances: [n, *shape] on the CPU, uint8 or float32.
            probabilities: what the model made of them, float64 [n, classes].

        Returns:
            Attributions, float64 [n, *shape]: the fall of the answer's probability, as the mean of
            the hidden parts that a number belongs to. Negative where hiding raises it.
        """
        instances = instances.float().unsqueeze(1)
        confidences, labels = probabilities.max(1)
        hidden = torch.where(self._masks, self._baseline, instances)
        # What was nothing before is not asked again: two thirds of a digit's windows.
        changed = (hidden != instances).flatten(2).any(2)
        owners = changed.nonzero()[:, 0]
        falls = torch.zeros(changed.shape, dtype=torch.float64)
        if len(owners):
            outputs = torch.cat([self._forward(part) for part in hidden[changed].split(_BATCH)])
            answer = outputs.gather(1, labels[owners].unsqueeze(1)).squeeze(1)
            falls[changed] = confidences[owners] - answer
        attributions: torch.Tensor = torch.tensordot(falls, self._weights, dims=1)
        return attributions


def _masks(shape: tuple[int, ...]) -> torch.Tensor:
    """What is hidden at a time: bool [parts, *shape]."""
    if len(shape) < 2:
        return torch.eye(math.prod(shape), dtype=torch.bool).view(-1, *shape)
    rows, columns = (_windows(side) for side in shape[-2:])
    masks = rows[:, None, :, None] & columns[None, :, None, :]
    return masks.flatten(0, 1).view(-1, *[1] * (len(shape) - 2), *shape[-2:]).expand(-1, *shape)


def _windows(side: int) -> torch.Tensor:
    """Windows of two strides, one a stride; those at the ends reach out: bool [windows, side]."""
    stride = math.ceil(side / _STRIDES_A_SIDE)
    places = torch.arange(side)
    begins = torch.arange(-stride, side, stride).unsqueeze(1)
    return (places >= begins) & (places < begins + 2 * stride)
