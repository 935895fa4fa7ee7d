"""Benchmarks, sweeps and texts at 80 columns."""

from svd2onnx.cli.tables.bench import bench_tables
from svd2onnx.cli.tables.evaluation import evaluation_table, generation_table
from svd2onnx.cli.tables.sweep import sweep_tables
from svd2onnx.deployment.generation import GeneratedText, GeneratedTexts
from svd2onnx.study.points import Point, Setting, Sweep
from svd2onnx_runtime import (
    BatchTiming,
    BenchedGraph,
    BenchResult,
    EvaluationResult,
    Footprint,
    GraphTiming,
    Roofline,
)
from tests.svd2onnx.cli.tables.shown import lines_of


def a_bench(provider: str) -> BenchResult:
    gpu = 512.0 if provider == "cuda" else None
    names = ("reference", "graph")
    return BenchResult(
        provider, "Intel(R) Xeon(R) Platinum 8370C CPU", "1.31.1", None, True if gpu else None, 50, 5,
        Roofline(4.4e9, {"float32": 63e9, "int8": 976e9}),
        tuple(BenchedGraph(own, own, 90_300_000, Footprint(0.36, 138.0, 138.0, 140.0, gpu, gpu), ("Gather",))
              for own in names),
        tuple(BatchTiming(batch, tuple(GraphTiming(own, 276.78, 270.0, 1294.33, 28.9, 1.0, 11.45)
                                       for own in names)) for batch in (1, 128)),
    )  # fmt: skip


def test_a_benchmark_fits_without_a_cut_name() -> None:
    lines = lines_of(bench_tables(a_bench("cpu")))
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["128", "graph", "276.78", "1294.33", "28.9", "1.00", "11.45", "24.2"] in rows
    assert ["graph", "90.30", "MB", "0.36", "1.00", "138", "1.5", "138"] in rows
    assert not any("not on the GPU" in line for line in lines)


def test_what_a_gpu_left_to_the_cpu_is_below_the_table() -> None:
    lines = lines_of(bench_tables(a_bench("cuda")))
    assert max(map(len, lines)) <= 80
    assert "not on the GPU: graph: Gather" in lines
    assert sum(line.startswith("reference ") for line in lines) == 1, "no name is cut"


def test_a_point_that_could_not_be_is_below_the_others_with_its_reason() -> None:
    reason = "a size of 0.01x is not reached: " + "the smallest has about 9 MB " * 4
    points = (
        Point(Setting("planned", value=0.15), 13_500_000, 0.15, 0.9913, metric={"accuracy": 0.81}),
        Point(Setting("planned", value=0.01), failure=reason),
        Point(Setting("quantize", 8), 23_000_000, 0.254, 0.9994),
    )
    lines = lines_of(sweep_tables(Sweep("models/minilm.py", "cosine", points)))
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["planned", "0.15", "13.50", "MB", "0.150", "0.99130", "0.8100"] in rows
    assert ["quantize,", "8", "bits", "23.00", "MB", "0.254", "0.99940"] in rows
    assert lines[-3].startswith("no point for planned 0.01: a size of 0.01x")


def test_an_evaluation_and_a_text_fit() -> None:
    metric = {"top1": 0.81}, {"top1": 0.83}
    result = EvaluationResult("cpu", "cosine", 256, 0.9894, 0.0106, 3e-4, 0.05, 17, *metric)
    lines = lines_of([evaluation_table(result)])
    assert "fidelity (cosine) 0.98940 +- 0.00030 1".split() in [line.split() for line in lines]
    assert "top1 0.8100 0.8300".split() in [line.split() for line in lines]
    text = GeneratedText("graph", "g.onnx", "x", (1, 2, 3), 12.34, 56.78, 1.23, 2)
    made = lines_of([generation_table(GeneratedTexts("Once", 4, "cpu", "1.31.1", 1, 3, (text,)))])
    assert max(map(len, lines + made)) <= 80
    assert "graph 12.3 56.8 1.23 first 2 of 3".split() in [line.split() for line in made]
