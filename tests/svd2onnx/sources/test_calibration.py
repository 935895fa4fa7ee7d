"""Calibration data of each kind becomes batches for the network; what is held out is not calibrated on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from svd2onnx.sources.calibration import ArraySamples, Splits, read_samples
from svd2onnx.sources.images import Preprocessing
from svd2onnx.sources.inputs import InputSpec, parse_shapes, random_batch
from svd2onnx.sources.load import with_data
from svd2onnx.sources.network import Network
from svd2onnx.sources.npz import read_npz
from svd2onnx.values.settings import Settings
from tests.svd2onnx.networks import Mlp, seeded
from tests.svd2onnx.sources import files


class Two(nn.Module):
    def forward(
        self, ids: torch.Tensor, weights: torch.Tensor, more: torch.Tensor | None = None
    ) -> torch.Tensor:
        return ids * weights


def rows_of(splits: Splits, split: str) -> list[int]:
    return [int(value) for batch in splits.inputs(split) for value in batch["x"]]


@pytest.mark.parametrize("count", [1, 4, 5, 12, 100, 2000])
def test_a_fifth_is_held_out(count: int) -> None:
    splits = Splits(ArraySamples({"x": torch.arange(count)}), 32)
    fit, held_out = rows_of(splits, "calibration"), rows_of(splits, "evaluation")
    assert rows_of(splits, "recovery") == fit
    if count < 5:
        assert not splits.holds_out
        assert fit == held_out == list(range(count))
    else:
        assert sorted(fit + held_out) == list(range(count)) or count > 1280
        assert len(held_out) == min(count // 5, 256)
        assert not set(fit) & set(held_out)


def test_batches_of_a_network_that_takes_one_size_are_full() -> None:
    splits = Splits(ArraySamples({"x": torch.arange(13)}), 4, is_fixed=True)
    assert [len(batch["x"]) for batch in splits.inputs("calibration")] == [4, 4, 4]
    assert [len(batch["x"]) for batch in splits.inputs("evaluation")] == [4]
    assert set(rows_of(splits, "evaluation")) == {4, 9}


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_gives_what_numpy_does(compressed: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "a": generator.normal(size=(4, 3)).astype("f"),
        "b": np.asfortranarray(generator.integers(0, 9, (4, 2, 5))),
        "c": generator.normal(size=(4,)).astype(">f8"),
        "d": np.array([True, False, True, True]),
    }
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", **arrays)
    for name, tensor in read_npz(tmp_path / "x.npz").items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


def test_arrays_take_the_types_of_the_inputs(tmp_path: Path) -> None:
    network = Network(tmp_path, Two(), None)
    save_file(
        {"ids": torch.arange(6).int(), "weights": torch.ones(6).half(), "label": torch.ones(6)},
        tmp_path / "x.safetensors",
    )
    (batch,) = read_samples(tmp_path / "x.safetensors", network).inputs("calibration")
    assert batch["ids"].tolist() == [0, 1, 2, 3, 5]
    assert batch["weights"].dtype == torch.float32
    assert "label" in batch


def test_one_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.ones((10, 64)))
    batch = next(read_samples(tmp_path / "x.npz", Network(tmp_path, Mlp(), None)).inputs("calibration"))
    assert batch["x"].shape == (8, 64)
    assert batch["x"].dtype == torch.float32


def test_pictures_are_scaled_and_normalized(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (30, 20), (255, 0, 51)).save(folder / "a.png")
    Image.new("L", (5, 5), 255).save(folder / "b.JPG")
    (folder / "notes.txt").write_text("no picture")
    spec = InputSpec("x", (8, 3, 6, 4), dynamic={0: "batch"})
    for preprocessing, mean, std in (
        (None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (Preprocessing((0.5,) * 3, (0.25,) * 3), (0.5,) * 3, (0.25,) * 3),
    ):
        network = Network(tmp_path, nn.Identity(), (spec,), preprocessing=preprocessing)
        (batch,) = read_samples(folder, network).inputs("calibration")
        assert batch["x"].shape == (2, 3, 6, 4)
        for channel, value in enumerate((1.0, 0.0, 0.2)):
            expected = torch.full((6, 4), (value - mean[channel]) / std[channel])
            torch.testing.assert_close(batch["x"][0, channel], expected)


def test_without_data_the_source_says_so(tmp_path: Path) -> None:
    network = Network(tmp_path / "x.pt", seeded(Mlp), None)
    source = with_data(network, Settings(input_shape=("1,64",), objective="cosine"))
    assert not source.calibrated
    assert "no --calibration" in source.warnings[0]
    assert source.objective == "cosine"
    (batch,) = source.inputs("calibration")
    assert batch["x"].shape == (8, 64)
    assert [b["x"].shape for b in source.inputs("evaluation")] == [(8, 64)] * 4
    assert source.dynamic_shapes == {"x": {0: "batch"}}


def test_a_model_file_can_be_the_calibration(tmp_path: Path) -> None:
    source = with_data(
        Network(tmp_path / "x.pt", nn.Identity(), None),
        Settings(calibration=files.model_file(tmp_path / "n.py")),
    )
    assert [batch["ids"].shape for batch in source.inputs("calibration")] == [(8, 6), (8, 9)]
    assert source.metric is not None
    assert source.calibrated


def test_shapes_may_have_names_and_types(tmp_path: Path) -> None:
    specs = parse_shapes(("weights=1,4", "1,4:int64"), Two(), tmp_path)
    assert [(spec.name, spec.dtype) for spec in specs] == [("weights", torch.float32), ("ids", torch.int64)]
    batch = random_batch(specs, 0)
    assert torch.equal(batch["ids"], random_batch(specs, 0)["ids"])
    assert not torch.equal(batch["weights"], random_batch(specs, 1)["weights"])
