"""From a trained network to TorchScript that takes instances as requests have them."""

import io
import re
import zipfile
from typing import Final

import torch
from torch import nn

from training.errors import TrainingError
from training.evaluation import predict
from training.products import as_products

_TOLERANCE = 1e-5
# Matrix products take 101 us an image for 2, where convolutions as served take 225, and 59 for 8
# instead of 71; for 11 they take 1 us less, and for 15 5 us more (one core of a Xeon, AVX-512).
_FEW = 12
_CLASS_NUMBER = re.compile(rb"[./]___torch_mangle_\d+")


class ExportError(TrainingError):
    """TorchScript and the eager network differ; the message says by how much."""


class ServedModel(nn.Module):
    """A network with the steps before and after it: from a request's numbers to probabilities.

    Args:
        normalise: float32 [n, *input_shape] to the network's input.
        network: the trained part, to logits [n, classes].

    Attributes:
        temperature: what the logits are divided by before the softmax (Guo et al. 2017).
    """

    def __init__(self, normalise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network
        self.temperature = 1.0

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output, float32 [n, classes], for instances [n, *input_shape]."""
        logits: torch.Tensor = self.network(self.normalise(x.to(torch.float32)))
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities, float32 [n, classes], of instances [n, *input_shape] of any dtype."""
        return torch.softmax(self.logits(x) / self.temperature, dim=1)


class _WithProducts(ServedModel):
    """The same, with its convolutions as matrix products where a CPU has few instances.

    Args:
        model: in evaluation mode.
        products: what computes the same as its network.
    """

    few: Final = _FEW

    def __init__(self, model: ServedModel, products: nn.Module) -> None:
        super().__init__(model.normalise, model.network)
        self.products = products
        self.temperature = model.temperature

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """As those of `ServedModel`."""
        x = self.normalise(x.to(torch.float32))
        is_few = len(x) < self.few and not x.is_cuda
        logits: torch.Tensor = self.products(x) if is_few else self.network(x)
        return logits


def to_torchscript(model: ServedModel, x: torch.Tensor) -> bytes:
    """Script a trained model, freeze it and check that its output is the same.

    Args:
        model: in evaluation mode, on the CPU.
        x: real instances [n, *input_shape] to check with.

    Returns:
        The TorchScript file; the same weights give the same bytes wherever they were trained.

    Raises:
        ExportError: a label differs, or a probability differs by more than 1e-5 or is NaN.
    """
    products = as_products(model.network)
    exported = model if products is None else _WithProducts(model, products).eval()
    content = _save(torch.jit.freeze(torch.jit.script(exported)))
    loaded = torch.jit.load(io.BytesIO(content))
    expected, answered = predict(model, x), predict(loaded, x)
    difference = (expected - answered).abs().max().item()
    labels_differ = int((expected.argmax(dim=1) != answered.argmax(dim=1)).sum())
    if labels_differ or not difference <= _TOLERANCE:
        raise ExportError(
            f"TorchScript differs from the network on {len(x)} instances: {labels_differ} labels, "
            f"probabilities by up to {difference:.1e} (allowed: {_TOLERANCE:.0e})"
        )
    return content


def _save(frozen: torch.jit.ScriptModule) -> bytes:
    """Save a frozen module, which has a single class, so that equal modules give equal bytes.

    Torch records the paths of the source files, and numbers the class by how many this process has
    scripted before.
    """
    saved, cleaned = io.BytesIO(), io.BytesIO()
    torch.jit.save(frozen, saved)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(cleaned, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(".debug_pkl"):
                continue
            if name.endswith((".py", "/data.pkl")):
                content = _CLASS_NUMBER.sub(b"", content)
            target.writestr(_CLASS_NUMBER.sub(b"", name.encode()).decode(), content)
    cleaned.seek(0)
    # Loading and saving once more makes torch align the weights in the file.
    resaved = io.BytesIO()
    torch.jit.save(torch.jit.load(cleaned), resaved)
    return resaved.getvalue()
