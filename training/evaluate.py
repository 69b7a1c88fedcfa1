"""Every figure of a trained model: on clean, corrupted, photographed and foreign data; its cost."""

import io
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from handler.errors import RequestError
from handler.images import Picture, decode_plain
from training.archive import ArchiveError
from training.calibration import expected_calibration_error
from training.compare import Candidate
from training.corruptions import robustness
from training.data import Split
from training.evaluation import measure, predict
from training.listing import columns
from training.photographs import photographs
from training.registry import MODELS, load_recipe
from training.strangers import KINDS, strangers

SEED = 0
# Of each ink. One takes 0.14 s to make and 4 ms to read; of 400 right in 97 of 100, the standard
# error is 0.9 points.
PHOTOGRAPHS = 400
STRANGERS = 2000

_BATCHES = (1, 16)
# From so many instances on, handlers run the module with prepacked weights.
_PREPACKED_FROM = 4
_ROUNDS = 300
# Instances a round: enough for the clock's resolution, and few enough that most rounds end before
# the scheduler gives the core to another process.
_INSTANCES = 8


@dataclass(frozen=True)
class Size:
    """How large a served network is.

    Attributes:
        parameters: numbers in the TorchScript's tensors. Batch normalisation is folded into its
            neighbour there, so that they are a few fewer than training fitted.
        multiply_adds: of one instance, in convolutions and matrix products.
    """

    parameters: int
    multiply_adds: int


def figures(
    candidate: Candidate,
    data_directory: Path,
    *,
    beside: Candidate | None = None,
    photographs_of_each: int = PHOTOGRAPHS,
    strangers_of_each: int = STRANGERS,
) -> dict[str, Any]:
    """Measure a model; the same model gives the same figures but for the time of its forward.

    Args:
        candidate: the model.
        data_directory: cache of the data.
        beside: another one, whose forward is timed in turns with the model's.
        photographs_of_each: how many digits are photographed with dark ink and with light ink.
        strangers_of_each: how many pictures of each kind that is no digit.

    Returns:
        A tree that JSON can hold. Shares are 0 to 1.

    Raises:
        ArchiveError: the model is not registered here.
        DataError: the data is not available.
    """
    card = candidate.card
    if card.name not in MODELS:
        raise ArchiveError(
            f"{candidate.title} is model {card.name}: expected one of {', '.join(MODELS)}"
        )
    model = torch.jit.load(io.BytesIO(candidate.torchscript)).eval()
    test = load_recipe(card.name).data(data_directory).test
    probabilities = predict(model, test.x)
    measured = measure(probabilities, test.y)
    size = size_of(model, test.x[:1])
    tree: dict[str, Any] = {
        "model": card.name,
        "version": card.version,
        "architecture": card.architecture,
        "seed": card.seed,
        "torchscript_sha256": card.torchscript_sha256,
        "parameters": size.parameters,
        "multiply_adds": size.multiply_adds,
        "test": {
            "instances": measured.instances,
            "accuracy": measured.accuracy,
            "log_loss": measured.log_loss,
            "min_confidence": measured.min_confidence,
        },
        "forward": forward_times(candidate, test.x, beside),
    }
    if beside is not None:
        tree["beside"] = beside.title
    if card.name == "mnist":
        tree |= _of_digits(model, test, probabilities, photographs_of_each, strangers_of_each)
    return tree


def _of_digits(
    model: nn.Module,
    test: Split,
    probabilities: torch.Tensor,
    photographs_of_each: int,
    strangers_of_each: int,
) -> dict[str, Any]:
    kinds = robustness(model, test.x.numpy(), test.y.numpy(), SEED)
    photographed: dict[str, Any] = {"instances": min(photographs_of_each, len(test))}
    part = slice(photographs_of_each)
    for ink in ("dark", "light"):
        photographed[ink] = _accuracy(model, photographs(test.x[part], SEED, ink), test.y[part])
    files, labels = optical_digits()
    confidence = probabilities.max(dim=1).values.numpy()
    separated = {
        kind: auroc(confidence, _confidence(model, strangers(kind, strangers_of_each, SEED)))
        for kind in KINDS
    }
    return {
        "expected_calibration_error": expected_calibration_error(probabilities, test.y),
        "mnist_c": {
            "accuracy": kinds,
            "mean": statistics.fmean(kinds.values()),
            "worst": min(kinds.values()),
        },
        "photographs": photographed,
        "optical_digits": {
            "instances": len(labels),
            "accuracy": _accuracy(model, files, torch.from_numpy(labels)),
        },
        "auroc": separated | {"mean": statistics.fmean(separated.values())},
    }


def read(data: bytes) -> bytes:
    """The pixels that the handler makes of a picture file, uint8, 28 rows of 28.

    Raises:
        RequestError: the handler refuses it.
    """
    return bytes(decode_plain(data) or Picture(data).decode())


def _accuracy(
    model: nn.Module, files: Sequence[bytes] | Iterator[bytes], labels: torch.Tensor
) -> float:
    """Share of picture files answered right; one that is refused is not."""
    pixels, known = [], []
    for data, label in zip(files, labels.tolist(), strict=True):
        with suppress(RequestError):
            pixels.append(np.frombuffer(read(data), np.uint8).reshape(28, 28))
            known.append(label)
    if not known:
        return 0.0
    answers = predict(model, torch.from_numpy(np.stack(pixels))).argmax(dim=1)
    return int((answers == torch.tensor(known)).sum()) / len(labels)


def optical_digits() -> tuple[list[bytes], NDArray[np.int64]]:
    """The 1,797 digits of the UCI test set (Alpaydin and Kaynak 1998) as PNG files, and labels.

    scikit-learn has them as 8x8 counts of ink, 0 to 16, cut along the ink. Each becomes 160x160 by
    cubic interpolation, light on dark and without a margin.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    files = []
    for counts in bunch.images:
        image = Image.fromarray(np.rint(counts * (255 / 16)).astype(np.uint8))
        buffer = io.BytesIO()
        image.resize((160, 160), Image.Resampling.BICUBIC).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files, bunch.target.astype(np.int64)


def _confidence(model: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    confidence: NDArray[np.float32] = predict(model, torch.from_numpy(images)).amax(dim=1).numpy()
    return confidence


def auroc(digits: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """Chance that a digit's confidence is over another picture's; one half if both are equal."""
    from sklearn.metrics import roc_auc_score

    is_digit = np.repeat([1, 0], [len(digits), len(others)])
    return float(roc_auc_score(is_digit, np.concatenate([digits, others])))


def size_of(model: torch.jit.ScriptModule, instance: torch.Tensor) -> Size:
    """Count a TorchScript module's parameters, and the multiply-adds that it does.

    Args:
        model: frozen, or with parameters.
        instance: [1, *input_shape].
    """
    parameters = sum(tensor.numel() for tensor in model.parameters())
    parameters += sum(_constants(model.graph).values())
    # It sees each operator as the interpreter calls it, and counts a multiply-add as two.
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(instance)
    return Size(parameters, counter.get_total_flops() // 2)


def _constants(block: Any) -> dict[str, int]:
    """Size of each constant tensor that a block of TorchScript uses, by name.

    Branches compute the same, from weights in forms of their own: the one with most counts.
    """
    sizes: dict[str, int] = {}
    for node in block.nodes():
        for value in node.inputs():
            source = value.node()
            if source.kind() == "prim::Constant" and value.type().kind() == "TensorType":
                sizes[value.debugName()] = source.t("value").numel()
        branches = [_constants(branch) for branch in node.blocks()]
        largest = max(branches, key=lambda branch: sum(branch.values()), default={})
        sizes |= largest
    return sizes


def forward_times(
    candidate: Candidate, x: torch.Tensor, beside: Candidate | None = None
) -> dict[str, dict[str, float]]:
    """Time the forward on one core, of each batch size as the handler runs it.

    Args:
        candidate: the model.
        x: instances [n, *input_shape], repeated where they are fewer than a batch.
        beside: another model, timed in turns.

    Returns:
        By batch size, `microseconds` an instance (median over the rounds) and, with `beside`,
        `ratio` to the other's.
    """
    times = {}
    with _one_thread(), torch.inference_mode():
        for batch in _BATCHES:
            instances = x[torch.arange(batch) % len(x)]
            models = [_loaded(side, batch) for side in (candidate, beside) if side is not None]
            seconds = np.empty((_ROUNDS, len(models)))
            for number in range(_ROUNDS):
                # Each is first in turn: the first of a round takes up to a tenth longer.
                for place in range(len(models))[:: -1 if number % 2 else 1]:
                    seconds[number, place] = _seconds(models[place], instances)
            medians = np.median(seconds[_ROUNDS // 5 :], axis=0)  # after warming up
            times[str(batch)] = {"microseconds": float(medians[0]) / batch * 1e6}
            if beside is not None:
                times[str(batch)]["ratio"] = float(medians[0] / medians[1])
    return times


def _loaded(candidate: Candidate, batch: int) -> torch.jit.ScriptModule:
    model = torch.jit.load(io.BytesIO(candidate.torchscript)).eval()
    return torch.jit.optimize_for_inference(model) if batch >= _PREPACKED_FROM else model


def _seconds(model: torch.jit.ScriptModule, instances: torch.Tensor) -> float:
    begin = time.perf_counter()
    calls = max(1, _INSTANCES // len(instances))
    for _ in range(calls):
        model(instances)
    return (time.perf_counter() - begin) / calls


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def text(tree: dict[str, Any]) -> str:
    """What `figures` returns, as a table."""
    test = tree["test"]
    rows: list[tuple[str, ...]] = [
        ("model", f"{tree['model']} {tree['version']}".strip()),
        ("architecture", f"{tree['architecture']}, seed {tree['seed']}"),
        ("TorchScript", tree["torchscript_sha256"][:12]),
        ("parameters", f"{tree['parameters']:,}"),
        ("multiply-adds an instance", f"{tree['multiply_adds']:,}"),
    ]
    for batch, times in tree["forward"].items():
        ratio = f", {times['ratio']:.2f} of {tree['beside']}" if "ratio" in times else ""
        rows.append((f"forward, batch {batch}", f"{times['microseconds']:.1f} us each{ratio}"))
    rows += [
        ("test instances", f"{test['instances']:,}"),
        ("test accuracy", _percent(test["accuracy"])),
        ("test log loss", f"{test['log_loss']:.4f}"),
        ("least confidence in a label", f"{test['min_confidence']:.4f}"),
    ]
    if tree["model"] == "mnist":
        rows += _rows_of_digits(tree)
    return columns(rows)


def _rows_of_digits(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield ("expected calibration error", _percent(tree["expected_calibration_error"]))
    corrupted, photographed = tree["mnist_c"], tree["photographs"]
    yield ("MNIST-C, mean of 15", _percent(corrupted["mean"]))
    yield ("MNIST-C, worst", _percent(corrupted["worst"]))
    for kind, accuracy in corrupted["accuracy"].items():
        yield (f"  {kind}", _percent(accuracy))
    for ink in ("dark", "light"):
        yield (f"{photographed['instances']} photographs, {ink} ink", _percent(photographed[ink]))
    optical = tree["optical_digits"]
    yield (f"{optical['instances']:,} UCI optical digits", _percent(optical["accuracy"]))
    for kind, area in tree["auroc"].items():
        yield (f"AUROC, digits and {kind}", f"{area:.4f}")


def _percent(share: float) -> str:
    return f"{share:.2%}"
