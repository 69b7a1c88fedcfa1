"""Convolutions as matrix products, which a CPU computes faster for a few images.

oneDNN, which torch calls for convolutions, needs 10 to 15 us for each before it computes anything;
from 12 images on its kernels make up for that.
"""

from typing import Final

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


class Product(nn.Module):
    """`nn.Linear` in one operation, of which torch's optimisations leave the weights as they are.

    Args:
        weight: [inputs, outputs].
        bias: [outputs].
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [n, inputs] to [n, outputs]."""
        return torch.addmm(self.bias, x, self.weight)


class ConvolutionAsProduct(nn.Module):
    """A square `nn.Conv2d` as the product of its windows and its weights (im2col).

    Chellapilla, Puri and Simard 2006, "High performance convolutional neural networks for document
    processing".

    Args:
        convolution: with a bias.
    """

    side: Final[int]
    stride: Final[int]
    padding: Final[int]

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        (self.side, _), (self.stride, _) = convolution.kernel_size, convolution.stride
        self.padding = int(convolution.padding[0])
        assert convolution.bias is not None
        weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
        self.product = Product(weight, convolution.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [n, height, width, inputs], contiguous, to the same with outputs."""
        if self.padding:
            x = torch.constant_pad_nd(x, [0, 0] + [self.padding] * 4)
        n, height, width, channels = x.shape
        rows = (height - self.side) // self.stride + 1
        columns = (width - self.side) // self.stride + 1
        row = width * channels
        windows = x.as_strided(
            [n, rows, columns, self.side, self.side * channels],
            [height * row, self.stride * row, self.stride * channels, row, 1],
        )
        pixels = windows.reshape(n * rows * columns, self.side * self.side * channels)
        products: torch.Tensor = self.product(pixels)
        return products.view(n, rows, columns, -1)


class PixelsToChannels(nn.Module):
    """`nn.PixelUnshuffle`, for pictures whose channels come last.

    Args:
        side: of the squares whose pixels become channels.
    """

    side: Final[int]

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From [n, 1, height, width] to [n, height / side, width / side, side²]."""
        n, _, height, width = x.shape
        squares = x.view(n, height // self.side, self.side, width // self.side, self.side)
        return squares.transpose(2, 3).flatten(3)


def as_products(network: nn.Module) -> nn.Sequential | None:
    """Build what computes the same as a convolutional network in evaluation mode.

    Args:
        network: [n, 1, height, width] to logits; its weights are copied.

    Returns:
        None if the network has no convolution, or a layer that is not known here.
    """
    if not isinstance(network, nn.Sequential):
        return None
    layers: list[nn.Module] = []
    channels = 0  # of the pictures, until they are flattened
    for layer in _without_batch_norm(network):
        match layer:
            case nn.PixelUnshuffle() if not layers:
                layers.append(PixelsToChannels(layer.downscale_factor))
            case nn.Conv2d() if layers and _is_plain(layer):
                channels = layer.out_channels
                layers.append(ConvolutionAsProduct(layer))
            case nn.Linear() if channels:
                # Its inputs are ordered by channel, and the pictures' numbers by place.
                weight = layer.weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)
                channels = 1
                layers.append(Product(weight.t(), layer.bias))
            case nn.ReLU():
                layers.append(nn.ReLU(inplace=True))
            case nn.Flatten() if channels:
                layers.append(nn.Flatten())
            case _:
                return None
    return nn.Sequential(*layers) if channels else None


def _is_plain(convolution: nn.Conv2d) -> bool:
    """Whether `ConvolutionAsProduct` knows all that is set of it."""
    pairs = (convolution.kernel_size, convolution.stride, convolution.padding)
    return (
        all(not isinstance(pair, str) and pair[0] == pair[1] for pair in pairs)
        and convolution.groups == 1
        and convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.bias is not None
    )


def _without_batch_norm(network: nn.Sequential) -> list[nn.Module]:
    """The layers of a network, their batch normalisation folded into the layer before it."""
    layers: list[nn.Module] = []
    for layer in network:
        match layers[-1:], layer:
            case [nn.Conv2d() as convolution], nn.BatchNorm2d():
                layers[-1] = fuse_conv_bn_eval(convolution, layer)
            case [nn.Linear() as linear], nn.BatchNorm1d():
                layers[-1] = fuse_linear_bn_eval(linear, layer)
            case _:
                layers.append(layer)
    return layers
