"""Layers in a pipe, on a narrow terminal, and with names that do not fit."""

from svd2onnx.cli.tables.inspection import InspectionTable
from svd2onnx.study.inspection import Gain, LayerInspection, Spectrum
from tests.svd2onnx.cli.tables.shown import lines_of


def a_linear(name: str) -> LayerInspection:
    gains = {
        "8 bits": Gain("int8/128", 595_200, 2.03e-5),
        "4 bits": Gain("int4/32", 314_112, 4.5e-4),
        "pair": Gain("rank 320 int2/32", 174_208, 4.93e-3),
    }
    spectra = Spectrum((), (271, 366)), Spectrum((), (70, 152))
    return LayerInspection(name, "linear", (384, 1536), 2_359_296, *spectra, gains)


NORMS = [
    LayerInspection(f"encoder.layer.{i}.LayerNorm", "LayerNorm", (384,), 1536, note="stays") for i in range(2)
]
TABLE = LayerInspection(
    "encoder.embeddings.words", "embedding", (30522, 384), 46_881_792,
    gains={"8 bits": Gain("int8/128", 11_873_058, 8.55e-6), "4 bits": Gain("int4/32", 6_287_532, 2.9e-3)},
)  # fmt: skip
ROWS = [
    TABLE,
    *(a_linear(f"encoder.layer.{i}.attention.{own}") for i in range(2) for own in ("query", "output.dense")),
    *NORMS,
]


def test_a_narrow_terminal_shows_layers_below_their_block() -> None:
    lines = lines_of([InspectionTable(ROWS)])
    assert max(map(len, lines)) <= 80
    assert lines[:6] == [
        "                            shape     kB   rank  8 bits  4 bits            pair",
        "encoder.embeddings (embedding)",
        " words                  30522x384 46,882        8.5e-06 2.9e-03",
        "encoder.layer.0 (linear)",
        " attention.query         384x1536  2,359 70/152 2.0e-05 4.5e-04 r320 7% 4.9e-03",
        " attention.output.dense  384x1536  2,359 70/152 2.0e-05 4.5e-04 r320 7% 4.9e-03",
    ]
    assert lines[6] == "encoder.layer.1 (linear)"
    assert lines[9].split() == ["all", "layers", "56,322", "25%", "13%", "84%"]
    assert "2 layers, 3.1 kB, float: stays" in lines


def test_a_name_that_does_not_fit_shows_its_end() -> None:
    lines = lines_of([InspectionTable([a_linear(f"layer.0.{'very.' * 10}long.query")])], width=72)
    assert max(map(len, lines)) <= 72
    assert lines[1] == "layer.0 (linear)"
    name, *others = lines[2].split()
    assert name.startswith("\N{HORIZONTAL ELLIPSIS}")
    assert name.endswith("very.long.query")
    assert " ".join(others) == "384x1536 2,359 70/152 2.0e-05 4.5e-04 r320 7% 4.9e-03"


def test_in_a_pipe_every_layer_is_one_line_with_all_that_is_known() -> None:
    lines = lines_of([InspectionTable(ROWS)], width=1000)
    found = [line for line in lines if "encoder.layer.1.attention.query" in line]
    assert len(found) == 1
    assert found[0].split()[:3] == ["encoder.layer.1.attention.query", "linear", "384x1536"]
    for part in ("271/366", "70/152", "25%, 2.0e-05", "r320: 7%, 4.9e-03"):
        assert part in found[0]
    assert sum("stays" in line for line in lines) == 2


def test_a_network_of_floats_alone_says_why() -> None:
    lines = lines_of([InspectionTable(NORMS[:1])], width=40)
    assert lines[0].startswith("all layers")
    assert "encoder.layer.0.LayerNorm, 1.5 kB" in lines[2]
