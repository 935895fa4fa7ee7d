"""Where things are computed: one place decides, and on a GPU all of it comes out as on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from svd2onnx.calibration.calibrate import calibrate
from svd2onnx.calibration.moments import WIDEST
from svd2onnx.cli.main import main
from svd2onnx.compression.lowrank import Weighting, factorize
from svd2onnx.compute.device import CPU, device_of, each_tensor, on, placed, resolve_device
from svd2onnx.compute.device_store import DeviceStore
from svd2onnx.compute.tensor_store import TensorStore
from svd2onnx.network.layers import discover, weight_of
from svd2onnx.pipeline import preparation
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.pipeline.preparation import prepare
from svd2onnx.planning.candidates import priced
from svd2onnx.study.inspection import inspect_layers
from svd2onnx.tracing.trace import trace
from svd2onnx.values.errors import DeviceError
from svd2onnx.values.schema import LayerForm, QuantizedTensor, QuantSpec
from svd2onnx.values.settings import Settings
from tests.svd2onnx.networks import Embedded, Images, TiedHead, TiedLinears, batches_of, seeded
from tests.svd2onnx.pretended import CUDA, pretended_gpu

Write = Callable[..., Path]
FORMS = [
    LayerForm(QuantSpec(8, 32)),
    LayerForm(QuantSpec(2, 32)),
    LayerForm(rank=32, factors=QuantSpec(4, 32)),
    LayerForm(QuantSpec(4, 32), 32, QuantSpec(4, 32)),
    LayerForm(),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_the_cpu_or_one_clear_line(model_file: Path, tmp_path: Path) -> None:
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    with pytest.raises(DeviceError, match=r"needs a GPU and a PyTorch for CUDA, .* or --device cpu"):
        resolve_device("cuda")
    output = tmp_path / "out.onnx"
    asked = ["compress-export", str(model_file), "-o", str(output), "--device", "cuda"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: --device cuda needs a GPU")
    assert done.stderr.count("\n") == 1
    assert not output.exists()


@pytest.fixture
def tf32() -> Iterator[None]:
    """As torch starts, and as it was afterwards."""
    cublas, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cublas.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    cublas.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = True, True, False
    yield
    cublas.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before


@pytest.mark.usefixtures("tf32")
def test_a_gpu_computes_float32_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert resolve_device("cpu") == CPU
    assert torch.backends.cudnn.allow_tf32
    assert resolve_device("auto") == resolve_device("cuda") == CUDA
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic


def test_what_holds_tensors_is_moved_whole_and_is_itself_where_nothing_moves() -> None:
    stored = QuantizedTensor(torch.ones(2, 32, dtype=torch.int8), torch.ones(2, 1), QuantSpec(8, 32), None)
    value: dict[str, Any] = {"a": [stored, (torch.zeros(1), "text")], "b": 3}
    assert on(CPU, value) is value
    moved = each_tensor(value, lambda tensor: tensor + 1)
    assert torch.equal(moved["a"][0].codes, stored.codes + 1)
    assert moved["a"][0].spec is stored.spec
    assert moved["a"][1][0] == 1
    assert (moved["a"][1][1], moved["b"]) == ("text", 3)


def test_networks_are_copied_to_a_gpu_with_what_they_share() -> None:
    network = seeded(TiedHead)
    beside = nn.Sequential(network.middle)
    assert placed(CPU, network) == (network,)
    with pretended_gpu():
        copy, other = placed(CUDA, network, beside)
        assert device_of(copy) == device_of(other) == CUDA
        assert copy.head.weight is copy.table.weight
        assert other[0] is copy.middle
    assert device_of(network) == CPU


def test_the_pretended_gpu_finds_what_was_made_without_a_device() -> None:
    with pretended_gpu():
        there = torch.ones(3, device=CUDA)
        assert (there + torch.tensor(1.0) + there.new_zeros(3)).device == CUDA
        with pytest.raises(RuntimeError, match=r"aten.add.Tensor mixes the GPU with a CPU tensor \[3\]"):
            there + torch.zeros(3)
        with pytest.raises(RuntimeError, match="mixes"):
            there[torch.zeros(1).long()]


def test_sums_lie_on_the_gpu_as_far_as_there_is_room_and_are_kept_on_the_shelf() -> None:
    with pretended_gpu(free=4 * 1000):
        store = DeviceStore(CUDA, TensorStore())
        sums = [store.zeros((100,)) for _ in range(3)]
        assert [own.device for own in sums] == [CUDA, CUDA, CPU]
        kept = store.kept({"a": sums[0], "b": sums[2]})
        assert kept["a"].device == CPU
        assert kept["b"] is sums[2]


def worked_out(network: nn.Module, device: torch.device, objective: str) -> list[Any]:
    """Statistics of every layer, and all that is made of them, on the CPU."""
    batches = batches_of(network)
    sites = discover(network, batches[0])
    (there,) = placed(device, network)
    statistics = calibrate(there, sites, batches[:1], objective, held_out=batches[1:], draws=2)
    made: list[Any] = [list(statistics.items())]
    for site in sites:
        if site.name in statistics:
            weight, own = on(device, (weight_of(network, site), statistics[site.name]))
            forms = FORMS if site.kind == "linear" else FORMS[: 3 if site.groups == 1 else 2]
            made.append(on(CPU, priced(weight, site, own, FORMS[:1] if site.kind == "embedding" else forms)))
    return made


def tensors_of(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    each_tensor(value, note)
    return found


def assert_equal(own: Any, other: Any) -> None:
    """Bit for bit, and all of it on the CPU."""
    assert tensors_of(own)
    for mine, theirs in zip(tensors_of(own), tensors_of(other), strict=True):
        assert theirs.device == CPU
        assert torch.equal(mine, theirs)
    blank = [str(each_tensor(value, lambda _: torch.tensor(0))) for value in (own, other)]
    assert blank[0] == blank[1]


@pytest.mark.parametrize(
    ("kind", "objective", "free"),
    [
        (TiedLinears, "mse", 1 << 30),
        (TiedHead, "kl", 1 << 30),
        (Embedded, "cosine", 0),
        (Images, "kl", 1 << 16),
    ],
)
def test_a_gpu_finds_the_same_statistics_prices_and_codes(
    kind: type[nn.Module], objective: str, free: int
) -> None:
    """With room there for all sums, for none and for some."""
    network = seeded(kind)
    expected = worked_out(network, CPU, objective)
    with pretended_gpu(free):
        found = worked_out(network, CUDA, objective)
    assert_equal(expected, found)


def test_wide_inputs_and_random_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svd2onnx.compression.lowrank._LARGE", 32)
    generator = torch.Generator().manual_seed(0)
    weight, wide = torch.randn(48, 80, generator=generator), torch.randn(4, WIDEST + 8, generator=generator)
    moment = torch.cov(torch.randn(80, 200, generator=generator)).double()
    diagonal = torch.rand(WIDEST + 8, generator=generator) + 0.1

    def factors(device: torch.device) -> list[Any]:
        w, v, m, d = on(device, [weight, wide, moment, diagonal])
        whole, narrow = Weighting(m), Weighting(d)
        return [whole.factorize(w, 4), whole.factorize(w), factorize(v), narrow.factorize(v, 2)]

    expected = factors(CPU)
    with pretended_gpu():
        found = on(CPU, factors(CUDA))
    assert_equal(expected, found)


@pytest.mark.parametrize("shape", [(24, 40), (4, WIDEST + 8)], ids=["svd", "eigh"])
def test_signs_of_singular_vectors_are_not_the_librarys(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = factorize(weight)
    svd, eigh = torch.linalg.svd, torch.linalg.eigh

    def flipped_svd(matrix: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vt = svd(matrix, full_matrices=full_matrices)
        return -u, s, -vt

    def flipped_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrix)
        return values, -vectors

    monkeypatch.setattr(torch.linalg, "svd", flipped_svd)
    monkeypatch.setattr(torch.linalg, "eigh", flipped_eigh)
    found = factorize(weight)
    assert torch.equal(found.left, expected.left)
    assert torch.equal(found.right, expected.right)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "quantize", "recover": 3},
        pytest.param({"method": "svd", "epsilon": 0.5}, marks=pytest.mark.slow),
        pytest.param({"target_size": "0.4x", "recover": 5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_whole_run_on_a_gpu_writes_the_same_file(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """And no piece of it is taken for one of the other device."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # as the GPU here
    cache = tmp_path / "cache"

    def run(device: str) -> tuple[str, Any, int]:
        output = tmp_path / f"{device}.onnx"
        asked = Settings(device=device, provider="cpu", cache=cache, **settings)
        report = compress_export(model_file, output, asked)
        return report.sha256, report.warnings, sum(path.is_file() for path in cache.rglob("*"))

    digest, warnings, pieces = run("cpu")
    with pretended_gpu():
        assert run("cuda") == (digest, warnings, 2 * pieces)


def test_inspection_on_a_gpu_tells_the_same(model_file: Path) -> None:
    asked: dict[str, Any] = {"calibration_samples": 16, "only": "linear", "include": ("second",)}
    expected = inspect_layers(model_file, Settings(device="cpu", **asked))
    with pretended_gpu():
        found = inspect_layers(model_file, Settings(device="cuda", **asked))
    assert [layer.gains for layer in found] == [layer.gains for layer in expected]
    for kind in ("spectrum", "used_spectrum"):  # which torch computes in another way
        own, other = (getattr(layers[-1], kind) for layers in (found, expected))
        assert own.values == pytest.approx(other.values, rel=1e-4, abs=1e-6)


CARELESS = ("torch.relu(self.norm", "torch.zeros(128) + torch.relu(self.norm")


def test_a_network_that_names_the_cpu_runs_there_all_the_same(write_model_file: Write) -> None:
    with pretended_gpu():
        prepared = prepare(write_model_file(CARELESS), Settings(device="cuda"), None)
        assert device_of(prepared.placed(prepared.model)[0]) == CUDA
    assert prepared.obstacle is None


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preparation, "placed", fails)


def test_a_network_that_does_not_run_there_runs_on_the_cpu(write_model_file: Write, too_large: None) -> None:
    with pretended_gpu():
        prepared = prepare(write_model_file(), Settings(device="cuda"), None)
        assert prepared.passes == CPU
    assert prepared.device == CUDA
    assert prepared.obstacle == "OutOfMemoryError: CUDA out of memory"


class Makes(nn.Module):
    """Makes tensors where its input lies, which a graph notes as the device that it was traced on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.layer(x + places) * torch.zeros(8, device=x.device).exp()


def test_a_graph_makes_its_tensors_on_the_gpu_too() -> None:
    x = torch.randn(3, 8)
    graph = trace(Makes().eval(), {"x": x}, {"x": {0: "batch"}})
    expected = graph(x)
    with pretended_gpu():
        (there,) = placed(CUDA, graph)
        found = there(x.to(CUDA))
        assert found.device == CUDA
        assert torch.equal(found.cpu(), expected)
    assert torch.equal(graph(x), expected)
