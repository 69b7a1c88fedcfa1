import io

import pytest
import torch
from torch import nn

from training.export import ServedModel, to_torchscript
from training.mnist import RECIPE, cnn
from training.products import as_products
from training.settings import Settings


@pytest.fixture
def network() -> nn.Sequential:
    """The default network, as if trained: each weight and statistic is a number of its own."""
    network = cnn(Settings())
    assert isinstance(network, nn.Sequential)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def test_the_default_network_as_products_computes_the_same(network: nn.Sequential) -> None:
    products = as_products(network)
    assert products is not None
    for n in (1, 2, 15):
        x = torch.randn(n, 1, 28, 28)
        with torch.inference_mode():
            assert torch.allclose(products(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("size", [(10, 10), (12, 8)])
def test_strides_padding_and_sizes(stride: int, padding: int, size: tuple[int, int]) -> None:
    network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 5, 3, stride, padding), nn.Flatten())
    with torch.inference_mode():
        x = torch.randn(3, 1, *size)
        outputs = network(x).shape[1]
        network = network.append(nn.Linear(outputs, 7))
        products = as_products(network)
        assert products is not None
        assert torch.allclose(products(x), network(x), atol=1e-5)


def test_torchscript_uses_products_for_a_few_images_and_convolutions_for_more(
    network: nn.Sequential,
) -> None:
    model = ServedModel(RECIPE.normalise, network).eval()
    x = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8)
    loaded = torch.jit.load(io.BytesIO(to_torchscript(model, x)))
    with torch.inference_mode():
        expected = model(x)
        for n in (1, 11, 12, 40):
            with torch.profiler.profile() as profile:
                answered = loaded(x[:n])
            assert torch.allclose(answered, expected[:n], atol=1e-6)
            operators = {event.key for event in profile.key_averages()}
            assert ("aten::conv2d" in operators) == (n >= 12)


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(3, 2),
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 5, 3), nn.MaxPool2d(2), nn.Flatten()),
        nn.Sequential(nn.PixelUnshuffle(2), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)),
        *(
            nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, 4, **settings))
            for settings in (
                {"kernel_size": (3, 2)},
                {"kernel_size": 3, "padding": "same"},
                {"kernel_size": 3, "groups": 2},
                {"kernel_size": 3, "dilation": 2},
                {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
                {"kernel_size": 3, "bias": False},
            )
        ),
    ],
)
def test_a_network_with_other_layers_stays_as_it_is(network: nn.Module) -> None:
    assert as_products(network) is None
