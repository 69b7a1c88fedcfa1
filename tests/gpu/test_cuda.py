"""The model on a GPU; without one, nothing here can be tested."""

from array import array
from functools import partial
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from handler.card import CARD_FILE
from handler.cuda import CudaGraphs
from handler.metrics import Metrics
from handler.mnist import MnistHandler
from handler.payload import Numbers
from handler.scripted import CpuForward, ScriptedModel
from tests.images import png
from tests.unit.test_batching import ask
from tests.untrained import Context, make_card, served_model
from training.export import to_torchscript

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file: Path = tmp_path_factory.mktemp("model") / "model.pt"
    file.write_bytes(to_torchscript(served_model("mnist"), torch.zeros(3, 28, 28)))
    return file


@pytest.fixture(scope="module")
def graphs(scripted: Path) -> CudaGraphs:
    device = torch.device("cuda:0")
    module = torch.jit.load(str(scripted), map_location=device).eval()
    return CudaGraphs(module, device, (28, 28))


def noise(count: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 28, 28), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 64, 100, 511, 512])
def test_a_graph_answers_as_the_cpu_does(
    graphs: CudaGraphs, scripted: Path, count: int, dtype: torch.dtype
) -> None:
    on_cpu = CpuForward(torch.jit.load(str(scripted)).eval(), (28, 28))
    instances = noise(count, dtype)
    parts = [on_cpu(part) for part in instances.split(CpuForward.max_batch)]
    assert graphs(instances).allclose(torch.cat(parts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [2, 5, 64, 512])
def test_the_batch_does_not_change_the_numbers(graphs: CudaGraphs, count: int) -> None:
    instances = noise(count)
    together = graphs(instances).clone()
    alone = torch.cat([graphs(instance[None]).clone() for instance in instances[:16]])
    assert together[:16].allclose(alone, rtol=0, atol=1e-6)


def test_what_an_earlier_batch_left_is_not_seen(graphs: CudaGraphs) -> None:
    first = graphs(noise(3)).clone()
    graphs(noise(512))
    assert graphs(noise(3)).equal(first)


def test_more_than_the_largest_batch(scripted: Path) -> None:
    content = scripted.read_bytes()
    model = ScriptedModel(scripted.parent, make_card("mnist", content), 0)
    numbers: Numbers = memory(noise(1100))
    probabilities = model(numbers)
    assert probabilities.shape == (1100, 10)
    assert probabilities.sum(dim=1).allclose(torch.ones(1100).double(), atol=1e-5)
    last = model(memory(noise(1100)[-1:]))
    assert probabilities[-1:].allclose(last, rtol=0, atol=1e-6)


def memory(instances: torch.Tensor) -> Numbers:
    return array("B", instances.numpy().tobytes())


def test_a_batch_beyond_the_memory_is_refused_and_the_next_is_answered(
    scripted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real allocation that fails, in the place of the forward."""
    content = scripted.read_bytes()
    (scripted.parent / CARD_FILE).write_text(make_card("mnist", content).to_json())
    monkeypatch.setattr("handler.batching.Metrics", partial(Metrics, registry=CollectorRegistry()))
    context = Context(scripted.parent)
    context.system_properties["gpu_id"] = 0
    handler = MnistHandler()
    handler.initialize(context)
    assert handler.model.device == torch.device("cuda:0")

    def exhaust(_: Numbers) -> torch.Tensor:
        return torch.empty(1 << 50, dtype=torch.uint8, device="cuda:0")

    body = png(noise(1)[0])
    with monkeypatch.context() as patch:
        patch.setattr(handler, "model", exhaust)
        assert [code for code, _ in ask(handler, body, body)] == [507, 507]
    assert ask(handler, body)[0][0] == 200
