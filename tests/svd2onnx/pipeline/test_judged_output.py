"""Networks of several outputs, and of masked ones: what is planned for, measured and told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import svd2onnx
from svd2onnx.cli.main import main
from svd2onnx.pipeline.final_report import lossy_outputs, measured_on
from svd2onnx.reporting.report import CompressionReport, read_report
from svd2onnx.sources import live, load
from svd2onnx.sources.source import Source
from svd2onnx.values.errors import PlanError
from svd2onnx_runtime import EvaluationResult, OutputFidelity
from tests.svd2onnx.pipeline.conftest import do_not_time

pytestmark = pytest.mark.usefixtures("no_bench")


class Detector(nn.Module):
    """x [batch, 64] -> scores and boxes [batch, 64], which share nothing, and the best class [batch]."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        self.boxes = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores = self.scores(x)
        return {"scores": scores, "boxes": self.boxes(x), "best": scores.argmax(-1)}


def run_detector(folder: Path, **settings: Any) -> CompressionReport:
    torch.manual_seed(0)
    return svd2onnx.compress(
        Detector(),
        [torch.randn(16, 64) for _ in range(8)],
        folder / "detector.onnx",
        provider="cpu",
        target_size="0.15x",
        **settings,
    )


@pytest.fixture(scope="module")
def by_scores(tmp_path_factory: pytest.TempPathFactory) -> CompressionReport:
    with pytest.MonkeyPatch.context() as patch:
        do_not_time(patch)
        return run_detector(tmp_path_factory.mktemp("scores"))


def test_an_output_that_the_plan_gives_up_is_warned_of_by_name(by_scores: CompressionReport) -> None:
    deployed = by_scores.deployed
    assert [own.name for own in deployed.outputs] == ["scores", "boxes", "best"]
    scores, boxes, best = deployed.outputs
    assert (deployed.output, deployed.fidelity) == ("scores", scores.fidelity)
    assert 1 - boxes.fidelity > 5 * (1 - scores.fidelity)
    assert best.objective == "equal elements"
    assert 0.5 < best.fidelity <= 1
    (warning,) = (text for text in by_scores.warnings if "loses much more" in text)
    assert "'boxes'" in warning
    assert "--objective boxes=KIND" in warning


def test_each_output_is_measured_as_written_too(by_scores: CompressionReport) -> None:
    strict = {own.name: own for own in by_scores.strict_outputs}
    assert strict["scores"].fidelity == by_scores.strict_fidelity
    assert strict["boxes"].fidelity == pytest.approx(by_scores.deployed.outputs[1].fidelity, abs=0.01)
    read = read_report(Path(f"{by_scores.output}.report.json"))
    assert (read.deployed, read.strict_outputs) == (by_scores.deployed, by_scores.strict_outputs)


def test_an_objective_with_a_name_plans_for_that_output(by_scores: CompressionReport, tmp_path: Path) -> None:
    report = run_detector(tmp_path, objective="boxes=mse")
    _, boxes, _ = report.deployed.outputs
    assert (report.deployed.output, report.deployed.objective) == ("boxes", "mse")
    assert (report.deployed.fidelity, report.strict_fidelity) == (
        boxes.fidelity,
        report.strict_outputs[1].fidelity,
    )
    assert 1 - boxes.fidelity < 0.2 * (1 - by_scores.deployed.outputs[1].fidelity)
    assert not any("loses much more" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("box=mse", "Detector: the objective is of output 'box', and the network gives scores, boxes, best"),
        ("best=mse", "Detector: the objective is of output 'best', which holds integers"),
    ],
)
def test_other_names_are_refused_with_those_there_are(tmp_path: Path, objective: str, expected: str) -> None:
    with pytest.raises(PlanError) as caught:
        run_detector(tmp_path, objective=objective)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind", "warned"),
    [(0.009, "mse", False), (0.0199, "mse", False), (0.021, "mse", True), (0.5, "equal elements", False)],
)
def test_much_more_is_four_times_and_a_hundredth(error: float, kind: str, warned: bool) -> None:
    outputs = OutputFidelity("a", "mse", 0.995, 0.005), OutputFidelity("b", kind, 1 - error, error)
    result = EvaluationResult("cpu", "mse", 4, 0.995, 0.005, None, 0.005, 0, {}, {}, "a", outputs)
    assert bool(list(lossy_outputs(result))) is warned


TWO_HEADS = (
    ('objective = "cosine"', 'objective = "half=mse"'),
    ("return self.second(", "y = self.second("),
    ("self.table(ids)))))", "self.table(ids)))))\n        return {'whole': y, 'half': y[..., :32]}"),
    ("(output,) = outputs.values()", "output = outputs['whole']"),
)


def test_a_model_file_names_the_output_and_evaluate_judges_it(
    write_model_file: Callable[..., Path], tmp_path: Path
) -> None:
    source, graph, reference = write_model_file(*TWO_HEADS), tmp_path / "n.onnx", tmp_path / "f.onnx"
    arguments = ["-o", graph, "--reference", reference, "--method", "quantize", "--provider", "cpu"]
    result = CliRunner().invoke(main, ["compress-export", *map(str, [source, *arguments])])
    assert result.exit_code == 0, result.output
    assert "(mse of half, " in result.output
    assert "whole: 0.9" in " ".join(result.output.split())
    report = read_report(Path(f"{graph}.report.json"))
    assert report.deployed.output == "half"
    asked = ["evaluate", graph, "--reference", reference, "--task", source, "--provider", "cpu"]
    shown = CliRunner().invoke(main, list(map(str, asked)), env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "fidelity (mse of half)" in shown.output
    assert f"{report.deployed.fidelity:.5f}" in shown.output
    text = source.read_text()
    source.write_text(text.replace("half=mse", "third=mse"))
    failed = CliRunner().invoke(main, list(map(str, asked)))
    assert failed.exit_code == 1
    assert "'third', and the network gives whole, half" in " ".join(failed.output.split())


class Policy(nn.Module):
    """x [batch, 64], allowed [batch, 40] -> logits of actions, ``mask`` where they are not allowed."""

    def __init__(self, mask: float) -> None:
        super().__init__()
        self.mask = mask
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 40))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        return self.layers(x).masked_fill(~allowed, self.mask)


class TwicePolicy(Policy):
    """The logits as they are, and masked."""

    def forward(self, x: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.layers(x)
        return logits, logits.masked_fill(~allowed, self.mask)


def situations(seed: int, rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(rows, 40, generator=generator) > 0.3
    allowed[:, 0] = True
    return {"x": torch.randn(rows, 64, generator=generator), "allowed": allowed}


def agreement(network: nn.Module, path: Path, output: int) -> float:
    """How often the file and the network choose the same action."""
    batch = situations(99, 400)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[output]
    with torch.inference_mode():
        wanted = network(**batch)
    wanted = wanted if isinstance(wanted, Tensor) else wanted[output]
    return float(np.mean(np.argmax(found, -1) == wanted.argmax(-1).numpy()))


@pytest.mark.parametrize(
    ("kind", "mask", "objective"),
    [
        (Policy, float("-inf"), "mse"),
        (Policy, torch.finfo(torch.float32).min, "mse"),
        (Policy, -1e9, "mse"),
        (Policy, float("-inf"), "kl"),
        (TwicePolicy, float("-inf"), "output_1=cosine"),
    ],
)
def test_masks_do_not_drown_what_is_planned_for(
    tmp_path: Path, kind: type[Policy], mask: float, objective: str
) -> None:
    torch.manual_seed(0)
    network, path = kind(mask).eval(), tmp_path / "policy.onnx"
    report = svd2onnx.compress(
        network,
        [situations(seed, 16) for seed in range(8)],
        path,
        provider="cpu",
        target_size="0.2x",
        objective=objective,
    )
    # 0.91 is what plain rounding to 4 bits gives, which has these bytes; layers of rank 0 gave 0.22.
    assert agreement(network, path, -1) > 0.85
    assert 0.9 < report.deployed.fidelity < 0.9999
    own = report.deployed.outputs[-1]
    assert 0.2 < own.masked < 0.4
    assert own.masks == (f"{mask:g}".replace("e+0", "e").replace("e+", "e"),)
    assert report.predicted_error == pytest.approx(report.strict_error, rel=0.6)


def test_a_report_says_what_its_fidelity_was_measured_on() -> None:
    def of(**parts: Any) -> str:
        return measured_on(Source(nn.Module, lambda _: iter(()), **parts))

    assert of() == "held-out samples"
    assert of(calibrated=False, warnings=(load.NO_DATA,)) == "random inputs"
    for text in (load.NOT_HELD_OUT, live.NOT_HELD_OUT):
        assert of(warnings=(text,)) == "calibration samples, not held out"
