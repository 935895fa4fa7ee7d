"""What a person reads of a compression, and in which order."""

from pathlib import Path

from svd2onnx.cli.tables.compression import compression_summary, retraining_line
from svd2onnx.reporting.report import CompressionReport, LatencyReport, LayerReport, Retraining, Speed
from svd2onnx_runtime import Certificate
from tests.svd2onnx.cli.tables.shown import lines_of
from tests.svd2onnx.reports import a_report


def shown(report: CompressionReport, reference: Path | None = None) -> list[str]:
    lines = lines_of(compression_summary(report, reference))
    assert max(map(len, lines)) <= 80
    return lines


def test_what_a_user_decides_by_comes_first_and_what_to_do_next_last() -> None:
    lines = shown(a_report(), Path("float.onnx"))
    assert lines[2:8] == [
        "fidelity         0.98940 +- 0.00030 (cosine, 256 held-out samples, cpu)",
        "size             7.7 times smaller, 13.0% of float32: 11.70 MB from 90.30 MB",
        "speed            0.83 times float32's time at batch 1: 8.30 ms against 10.0 ms",
        "                 0.89 times float32's time at batch 8: 71.2 ms against 80.0 ms",
        "certificate      passed: 37 fused of 37 quantized weights (cpu)",
        "",
    ]
    assert lines[8:10] == ["warning: no calibration data: inputs were taken as equal", ""]
    assert lines[10:15] == [
        "layers           1 x embedding: int4/32",
        "                 1 x linear: int2/64 + low-rank pair int4/32",
        "                 1 x linear: low-rank pair int4/32",
        "                 1 x linear: rank 0",
        "                 kept in float: 1 x LayerNorm",
    ]
    labels = [line.split("  ")[0] for line in lines[16:] if line[:1].strip()]
    assert labels[:6] == ["retrieval", "strict fidelity", "latency", "error", "against uniform", "retraining"]
    assert lines[-3:] == [
        "Next:",
        "  svd2onnx bench minilm.onnx --reference float.onnx",
        "  svd2onnx package minilm.onnx -o minilm-package",
    ]


def test_without_a_reference_nothing_is_compared_with_one() -> None:
    assert not any("--reference" in line for line in shown(a_report()))


def test_it_says_where_samples_were_not_held_out() -> None:
    lines = shown(a_report(measured_on="random inputs"))
    assert "256 random inputs" in lines[2]
    assert any(line.startswith("strict fidelity") and "on random inputs" in line for line in lines)
    lines = shown(a_report(measured_on="calibration samples, not held out"))
    assert "256 calibration samples, not held out, cpu" in " ".join(" ".join(lines[2:4]).split())


def test_a_command_is_one_line_however_long_and_safe_to_paste() -> None:
    output = f"{'folder/' * 20}with space.onnx"
    lines = lines_of(compression_summary(a_report(output=output), None))
    assert lines[-1] == f"  svd2onnx package '{output}' -o '{output.removesuffix('.onnx')}-package'"


def test_a_certificate_that_failed_says_what_and_how_many() -> None:
    unfused = tuple((f"layer{i}", "no kernel") for i in range(7))
    lines = shown(a_report(certificate=Certificate("cpu", "1.31.1", 9, ("a", "b"), unfused)))
    start = next(i for i, line in enumerate(lines) if line.startswith("certificate"))
    assert lines[start].endswith("failed: 2 fused of 9 quantized weights (cpu)")
    assert lines[start + 1] == "not fused        layer0: no kernel"
    assert lines[start + 6] == "                 and 2 more"


def test_a_file_without_quantized_weights_is_not_certified() -> None:
    lines = shown(a_report(certificate=Certificate("cpu", "1.31.1", 0, (), ())))
    assert any("none: the file holds no quantized weight" in line for line in lines)


def test_a_latency_that_was_asked_for_and_a_token_after_others() -> None:
    step = LatencyReport(1, 1234.5, 0.0456, 1.05, past=128)
    text = " ".join(" ".join(shown(a_report(latency=(step,), speed=Speed(0.41, 0.4, 0.42)))).split())
    assert "batch 1, a token after 128: 1,234 ms against 0.046 ms" in text
    assert "asked for 0.42 times float32's time; planned 0.41, measured 0.40" in text


def test_a_file_that_grew_says_so() -> None:
    layers = (LayerReport("a", "linear", (2, 2), "int8/128", 16, 16),)
    lines = shown(a_report(float_bytes=1000, file_bytes=1500, layers=layers))
    assert lines[3] == "size             1.50 times larger, 150.0% of float32: 1.5 kB from 1.0 kB"


def test_retraining_that_gained_nothing_says_so() -> None:
    assert "0.02000 to 0.01000" in retraining_line(Retraining(300, 0.02, 0.01))
    nothing = retraining_line(Retraining(80, 0.02, 0.02))
    assert "gained nothing" in nothing
    assert "80 steps" in nothing
