"""Effective ranks of weights and of what inputs make of them, and gains that are those of the real forms."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from svd2onnx.cli.main import main
from svd2onnx.study.inspection import LayerInspection, Spectrum, inspect_layers, total_bytes
from svd2onnx.values.settings import Settings

Write = Callable[..., Path]

# "narrow" has rank 5; "wide" has full rank, but its inputs move in 3 directions alone.
NETWORK = """
class Low(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.wide, self.tiny = nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 2)
        self.narrow.weight.data = torch.randn(96, 5) @ torch.randn(5, 64) / 8
        self.wide.weight.data = torch.randn(64, 96) / 8

    def forward(self, x):
        return self.tiny(torch.tanh(self.wide(self.narrow(x))))

def build():
    torch.manual_seed(0)
    return Low()

def inputs(split):
    torch.manual_seed({"calibration": 1, "recovery": 2, "evaluation": 3}[split])
    directions = torch.randn(3, 64, generator=torch.Generator().manual_seed(9))
    for _ in range(4):
        yield {"x": torch.randn(64, 3) @ directions}

dynamic_shapes = None
metric = None
"""
SETTINGS = Settings(provider="cpu")


@pytest.fixture
def source(write_model_file: Write) -> Path:
    return write_model_file(add=NETWORK)


def layers_of(source: Path, settings: Settings = SETTINGS) -> dict[str, LayerInspection]:
    return {layer.name: layer for layer in inspect_layers(source, settings)}


def test_a_spectrum_is_that_of_the_matrix() -> None:
    spectrum = Spectrum.of(torch.diag(torch.tensor([1.0, 4.0, 0.0, 0.1])))
    assert spectrum.values == pytest.approx((4, 1, 0.1, 0), abs=1e-6)
    assert spectrum.ranks == (1, 2)  # 16 of 17.01 are 94%
    assert Spectrum.of(torch.zeros(3, 2)).ranks == (0, 0)


def test_effective_ranks_are_of_the_weight_and_of_what_inputs_make_of_it(source: Path) -> None:
    layers = layers_of(source)
    narrow, wide = layers["narrow"], layers["wide"]
    assert narrow.spectrum is not None
    assert wide.spectrum is not None
    assert 3 <= narrow.spectrum.ranks[1] <= 5
    assert wide.spectrum.ranks[1] > 40
    for layer in (narrow, wide):
        assert layer.used_spectrum is not None
        assert layer.used_spectrum.ranks[1] <= 3
        assert len(layer.used_spectrum.values) == 64


def test_gains_save_as_the_forms_do_and_cost_as_little_as_the_weight_allows(source: Path) -> None:
    layers = layers_of(source)
    for name in ("narrow", "wide"):
        gains = layers[name].gains
        assert set(gains) == {"8 bits", "4 bits", "pair"}
        assert (gains["8 bits"].form, gains["4 bits"].form) == ("int8/128", "int4/32")
        assert gains["8 bits"].stored_bytes == pytest.approx(layers[name].float_bytes / 4, rel=0.05)
        assert gains["pair"].stored_bytes < gains["4 bits"].stored_bytes < gains["8 bits"].stored_bytes
        assert 0 < gains["8 bits"].predicted_error < gains["4 bits"].predicted_error
        assert gains["pair"].form.startswith("rank 32 ")
    stored = sum(layers[name].gains["8 bits"].stored_bytes for name in ("narrow", "wide"))
    assert "8 bits" not in layers["tiny"].gains
    assert total_bytes(list(layers.values()), "8 bits") == stored + layers["tiny"].float_bytes


def test_without_data_there_is_only_the_weight(source: Path) -> None:
    layers = layers_of(source, Settings(provider="cpu", calibration_samples=0))
    narrow = layers["narrow"]
    assert narrow.used_spectrum is None
    assert narrow.spectrum is not None
    assert narrow.spectrum.ranks[1] <= 5
    assert narrow.gains["8 bits"].predicted_error < 1e-3


def test_layers_without_a_spectrum_say_why(model_file: Path) -> None:
    layers = layers_of(model_file)
    assert layers["table"].spectrum is None
    assert set(layers["table"].gains) == {"8 bits", "4 bits"}
    assert layers["norm"].gains == {}
    assert layers["norm"].note == "LayerNorm layers are kept in float"


def test_a_stored_weight_has_gains_and_no_spectrum(write_model_file: Write) -> None:
    source = write_model_file(
        ("self.first, self.norm,", "self.mix, self.norm,"),
        ("nn.Linear(64, 128), nn.LayerNorm", "nn.ConvTranspose1d(64, 128, 1), nn.LayerNorm"),
        ("self.first(self.table(ids))", "self.mix(self.table(ids).transpose(1, 2)).transpose(1, 2)"),
    )
    layer = layers_of(source)["mix"]
    assert (layer.kind, layer.shape, layer.spectrum) == ("stored", (64, 128), None)
    assert set(layer.gains) == {"8 bits", "4 bits"}
    assert 0 < layer.gains["8 bits"].predicted_error < layer.gains["4 bits"].predicted_error


def test_a_layer_that_no_form_makes_smaller_says_so(write_model_file: Write) -> None:
    source = write_model_file(
        ("torch.relu(self.norm(self.first(self.table(ids))))", "self.often(self.table(ids))"),
        add="Network.often = lambda self, x: sum(self.norm(self.first(x * i)) for i in range(1, 40))",
    )
    note = layers_of(source, Settings(provider="cpu", calibration_samples=0))["first"].note
    assert note == "no other form is smaller: its 39 calls need a copy of its codes each"


def test_the_command_draws_and_tells(source: Path, tmp_path: Path) -> None:
    plot = tmp_path / "spectra.png"
    result = CliRunner().invoke(main, ["inspect", str(source), "--plot", str(plot), "--json"])
    assert result.exit_code == 0, result.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    records = {record["name"]: record for record in json.loads(result.stdout)}
    assert records["narrow"]["shape"] == [96, 64]
    assert len(records["narrow"]["spectrum"]["values"]) == 64
    assert records["narrow"]["gains"]["pair"]["stored_bytes"] > 0


def test_a_plot_of_no_spectrum_is_refused(model_file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "spectra.png"
    arguments = ["inspect", str(model_file), "--only", "embedding", "--plot", str(plot)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no spectrum to plot: none of the 4 layers")
    assert not plot.exists()
