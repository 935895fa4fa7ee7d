"""What a run takes from an earlier one: everything that is the same, and nothing that is not."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from svd2onnx.compression import lowrank
from svd2onnx.compression.lowrank import factorize
from svd2onnx.memo.cache import entries_of, open_cache
from svd2onnx.memo.disk_memo import DiskMemo, disk_memo
from svd2onnx.pipeline import statistics as gathering
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.planning import candidates
from svd2onnx.study.points import Setting
from svd2onnx.study.sweep import sweep
from svd2onnx.values.settings import Settings


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("this was to be taken from the cache")


def codes_of(folder: Path) -> set[str]:
    return {path.name for path in entries_of(folder) if path.name.startswith("codes-")}


def test_another_size_takes_calibration_prices_and_codes(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first, second = (Settings(target_size=size, provider="cpu", cache=cache) for size in ("0.3x", "0.2x"))
    compress_export(model_file, tmp_path / "first.onnx", first)
    codes = codes_of(cache)
    monkeypatch.setattr(gathering, "calibrate", forbidden)
    monkeypatch.setattr(candidates, "_priced", forbidden)
    compress_export(model_file, tmp_path / "second.onnx", second)
    assert codes < codes_of(cache)
    assert {path.name.partition("-")[0] for path in entries_of(cache)} == {
        *("moments", "probes", "dropped", "prices", "codes")
    }


@pytest.mark.slow
def test_a_sweep_goes_on_from_its_calibration(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(provider="cpu", cache=tmp_path / "cache")
    points = [Setting("svd", 8, 0.3), Setting("planned", value=0.3)]
    first = sweep(model_file, tmp_path / "a", points, settings)
    for owner, name in ((gathering, "calibrate"), (candidates, "_priced"), (lowrank, "factorize")):
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr("svd2onnx.study.measurement.calibrate", forbidden)
    monkeypatch.setattr(disk_memo, "factorize", forbidden)
    second = sweep(model_file, tmp_path / "b", points, settings)
    assert [point.fidelity for point in first.points] == [point.fidelity for point in second.points]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["sweep.csv", "sweep.json"]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)


@pytest.fixture
def about(tmp_path: Path) -> Callable[..., str]:
    """The digest that all pieces of work on a network have in their keys."""
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")

    def of(model: nn.Module, *more: object) -> str:
        with open_cache(tmp_path / "cache", fresh=False, kept=False) as cache:
            return disk_memo(cache, model, graph, *more)._about

    return of


def test_keys_hold_the_weights_the_graph_the_threads_and_whatever_else_counts(
    about: Callable[..., str], tmp_path: Path
) -> None:
    base = about(Network(), 0, [{"x": torch.ones(3)}])
    assert about(Network(), 0, [{"x": torch.ones(3)}]) == base
    other = Network()
    other.linear.weight.data[0, 0] += 1e-7
    found = [base, about(other, 0, [{"x": torch.ones(3)}])]
    found.append(about(Network(), 1, [{"x": torch.ones(3)}]))
    found.append(about(Network(), 0, [{"x": torch.ones(4)}]))
    found.append(about(Network(), 0, [{"y": torch.ones(3)}]))
    torch.set_num_threads(2)
    try:
        found.append(about(Network(), 0, [{"x": torch.ones(3)}]))
    finally:
        torch.set_num_threads(1)
    (tmp_path / "graph.onnx").write_bytes(b"other")
    found.append(about(Network(), 0, [{"x": torch.ones(3)}]))
    assert len(set(found)) == len(found)


def test_keys_hold_the_code_of_the_network(about: Callable[..., str], tmp_path: Path) -> None:
    """Gradients may change where neither graph nor weights do."""
    import importlib.util

    found = []
    for body in ("x", "x.detach()"):
        path = tmp_path / "defined.py"
        path.write_text(
            f"from torch import nn\nclass Own(nn.Module):\n    def forward(self, x):\n        return {body}\n"
        )
        spec = importlib.util.spec_from_file_location("defined_for_recall", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        found.append(about(module.Own()))
    del sys.modules["defined_for_recall"]
    assert found[0] != found[1]


def test_decompositions_come_back_bit_for_bit_and_in_their_layout(tmp_path: Path) -> None:
    weight = torch.randn(20, 30)
    fresh = factorize(weight)
    for _ in range(2):
        with open_cache(tmp_path / "cache", fresh=False, kept=True) as cache:
            found = DiskMemo(cache).decompose()(weight)
        for own, other in ((found.left, fresh.left), (found.right, fresh.right)):
            assert torch.equal(own, other)
            assert own.stride() == other.stride()
    assert len(entries_of(tmp_path / "cache")) == 1
