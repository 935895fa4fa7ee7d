"""Each kind of source, through the command line, to a verified file that onnxruntime runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from svd2onnx.cli.main import main
from svd2onnx.graph.signature import read_signature
from svd2onnx_runtime import open_session, run
from tests.svd2onnx.networks import Mlp, seeded
from tests.svd2onnx.sources import files


def svd2onnx(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def compressed(source: Path, *options: object) -> dict[str, Any]:
    """Compress with 8 bits; the report."""
    output = source.parent / "out.onnx"
    options = ("--method", "quantize", "--bits", "8", "--provider", "cpu", *options)
    svd2onnx("compress-export", source, "-o", output, *options)
    report: dict[str, Any] = json.loads(Path(f"{output}.report.json").read_text())
    assert report["strict_relative_error"] < 1e-5
    assert report["deployed"]["fidelity"] > 0.98
    assert report["file_bytes"] < 0.6 * report["float_bytes"]
    return report


def outputs_of(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(run(open_session(path, "cpu"), inputs).values())


def output_names(path: Path) -> list[str]:
    return [output.name for output in open_session(path, "cpu").get_outputs()]


def test_an_exported_program_of_texts(tmp_path: Path) -> None:
    source = files.text_program(tmp_path / "n.pt2")
    report = compressed(source, "--calibration", files.token_arrays(tmp_path / "x.npz"))
    assert not report["warnings"]
    assert {layer["kind"] for layer in report["layers"]} == {"embedding", "linear", "LayerNorm"}
    network = seeded(files.Texts)
    for shape in ((1, 3), (4, 20)):
        ids = torch.randint(0, 160, shape)
        for found, expected in zip(
            outputs_of(tmp_path / "out.onnx", {"ids": ids.numpy()}), network(ids), strict=True
        ):
            assert found.shape == expected.shape
            assert np.abs(found - expected.detach().numpy()).max() < 0.1 * float(expected.abs().max())


def test_an_exported_program_of_one_batch_size_on_pictures(tmp_path: Path) -> None:
    source = files.picture_program(tmp_path / "n.pt2", is_static=True)
    report = compressed(source, "--calibration", files.picture_folder(tmp_path / "pictures"))
    assert [latency["batch"] for latency in report["latency"]] == [2]
    assert all("BatchNorm" not in layer["kind"] for layer in report["layers"])  # folded
    x = torch.randn(2, 3, 16, 16)
    (found,) = outputs_of(tmp_path / "out.onnx", {"x": x.numpy()})
    assert np.abs(found - seeded(files.Pictures)(x).detach().numpy()).max() < 0.05


def test_a_state_dict_is_what_is_compressed(tmp_path: Path) -> None:
    """And not the weights that build() has made."""
    source = tmp_path / "n.pt"
    torch.save({"state_dict": files.state_dict(), "epoch": 3}, source)
    compressed(source, "--model", files.model_file(tmp_path / "network.py"))
    from svd2onnx.sources.model_file import load_model_file

    network = load_model_file(tmp_path / "network.py").build()
    network.load_state_dict(files.state_dict())
    ids = torch.randint(0, 160, (2, 5))
    (found,) = outputs_of(tmp_path / "out.onnx", {"ids": ids.numpy()})
    expected = network(ids).detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_pickled_network_where_that_is_allowed(tmp_path: Path) -> None:
    source = files.pickled(tmp_path / "n.pt")
    report = compressed(source, "--trust-pickle", "--input-shape", "1,64")
    assert [text.split(":")[0] for text in report["warnings"]] == [
        "no --calibration was given",
        "no calibration data",
    ]
    assert report["settings"]["trust_pickle"] is True
    x = torch.randn(3, 64)
    (found,) = outputs_of(tmp_path / "out.onnx", {"x": x.numpy()})
    assert np.abs(found - seeded(Mlp)(x).detach().numpy()).max() < 0.05


def test_a_folder_of_hugging_face_with_its_tokenizer(tmp_path: Path) -> None:
    source = files.bert_folder(tmp_path / "bert")
    report = compressed(source, "--calibration", files.text_file(tmp_path / "texts.txt"))
    assert not report["warnings"]
    assert report["deployed"]["fidelity"] > 0.999
    assert "then slept" not in json.dumps(report)  # no text of the calibration
    ids = np.array([[3, 4, 5], [6, 7, 1]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    states, _pooled = outputs_of(tmp_path / "out.onnx", inputs)
    assert states.shape == (2, 3, 64)
    other, _pooled = outputs_of(tmp_path / "out.onnx", {**inputs, "token_type_ids": np.ones_like(ids)})
    assert np.abs(states - other).max() > 0.01
    signature = read_signature(tmp_path / "out.onnx")
    assert {tensor.shape for tensor in signature.inputs} == {("batch_size", "sequence_length")}
    assert signature.is_batched
    assert [latency["batch"] for latency in report["latency"]] == [1, 8]
    assert output_names(tmp_path / "out.onnx") == ["last_hidden_state", "pooler_output"]


def shards(folder: Path) -> Path:
    tensors = files.state_dict()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for part, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, own in parts.items() for name in own}}))
    return index


def legacy(folder: Path) -> Path:
    tensors = {f"module.{name}": tensor for name, tensor in files.state_dict().items()}
    torch.save(tensors, folder / "n.pth", _use_new_zipfile_serialization=False)
    return folder / "n.pth"


def half(folder: Path) -> Path:
    save_file({n: t.half() for n, t in files.state_dict().items()}, folder / "n.safetensors")
    return folder / "n.safetensors"


@pytest.mark.parametrize("make", [shards, legacy, half], ids=lambda make: make.__name__)
def test_state_dicts_of_every_form(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = make(tmp_path)
    shown = svd2onnx("inspect", source, "--model", files.model_file(tmp_path / "network.py"))
    assert "160x64" in shown


def test_a_model_file_with_build_alone_serves_a_state_dict(tmp_path: Path) -> None:
    from tests.svd2onnx.conftest import MODEL_FILE

    (tmp_path / "network.py").write_text(MODEL_FILE.partition("def inputs")[0])
    torch.save(files.state_dict(), tmp_path / "n.pt")
    model = ("--model", tmp_path / "network.py")
    svd2onnx("inspect", tmp_path / "n.pt", *model, "--calibration", files.token_arrays(tmp_path / "x.npz"))
    svd2onnx("inspect", tmp_path / "n.pt", *model, "--input-shape", "1,6:int64")


def test_a_language_model_without_data(tmp_path: Path) -> None:
    shown = svd2onnx("inspect", files.gpt2_folder(tmp_path / "gpt2"))
    assert "100x64" in shown
    assert "192x64" in shown  # query, key and value of its Conv1D


def test_an_image_classifier_of_hugging_face(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=16,
        patch_size=8,
    )
    files.save_quietly(ViTForImageClassification(config), tmp_path / "vit")
    description = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(description))
    shown = svd2onnx(
        "inspect", tmp_path / "vit", "--calibration", files.picture_folder(tmp_path / "pictures")
    )
    assert "96x64" in shown


def test_a_model_file_calibrated_on_other_data(tmp_path: Path) -> None:
    from svd2onnx.pipeline.preparation import prepare
    from svd2onnx.values.settings import Settings

    source = files.model_file(tmp_path / "network.py")
    prepared = prepare(source, Settings(calibration=files.token_arrays(tmp_path / "x.npz")), None)
    assert {batch["ids"].shape[1] for batch in prepared.batches} == {7}
    assert [batch["ids"].shape for batch in prepared.evaluation] == [(8, 6), (8, 9)]


def test_outputs_of_a_folder_are_called_by_their_fields(tmp_path: Path) -> None:
    """With keys and values of a past or without."""
    source = files.gpt2_folder(tmp_path / "gpt2")
    options = ("--method", "quantize", "--bits", "8", "--provider", "cpu", "--calibration-samples", "0")
    for option, names in (
        ([], ["logits"]),
        (["--with-past"], ["logits", "present.0.key", "present.0.value"]),
    ):
        output = tmp_path / f"{len(names)}.onnx"
        svd2onnx("compress-export", source, "-o", output, *options, *option)
        assert output_names(output) == names


@pytest.mark.slow
def test_a_sweep_takes_any_source(tmp_path: Path) -> None:
    source = files.pickled(tmp_path / "n.pt")
    np.savez(tmp_path / "x.npz", np.random.default_rng(0).normal(size=(20, 64)).astype("f"))
    options = ("--trust-pickle", "--calibration", tmp_path / "x.npz", "--provider", "cpu")
    svd2onnx(
        "sweep",
        source,
        "-o",
        tmp_path / "sweep",
        "--bits",
        "8",
        "--epsilon",
        "0.5",
        "--size",
        "0.5",
        *options,
    )
    points = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["points"]
    assert len(points) >= 3
