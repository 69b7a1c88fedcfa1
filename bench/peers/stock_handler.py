"""TorchServe's built-in image handler, used as its own MNIST example uses it."""

from training.vision import torchvision

# isort: split
# It imports torchvision as well, which training.vision patches first beside a CPU-only torch.
from ts.torch_handler.image_classifier import ImageClassifier

_transforms = torchvision.transforms


class StockHandler(ImageClassifier):
    """The built-in handler with the transform that this TorchScript needs: raw pixels.

    It applies a second softmax, which changes the probabilities, not the label.
    """

    image_processing = _transforms.Compose(
        [_transforms.PILToTensor(), _transforms.Lambda(lambda pixels: pixels[0])]
    )
