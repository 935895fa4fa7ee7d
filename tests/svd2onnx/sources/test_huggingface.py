"""What folders of Hugging Face take: named as Optimum names it, with token types where there are any."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from svd2onnx.sources.calibration import read_samples
from svd2onnx.sources.huggingface import load_folder
from svd2onnx.sources.inputs import random_batch
from svd2onnx.sources.network import Network
from svd2onnx.tracing.trace import trace
from svd2onnx.values.errors import SourceError
from tests.svd2onnx.sources import files

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def inputs_of(network: Network) -> dict[str, Any]:
    assert network.specs is not None
    return {spec.name: spec.dynamic for spec in network.specs}


def test_bert_takes_the_types_that_its_tokenizer_gives(tmp_path: Path) -> None:
    network = load_folder(files.bert_folder(tmp_path / "bert", **TINY, type_vocab_size=3))
    axes = {0: "batch_size", 1: "sequence_length"}
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert inputs_of(network) == dict.fromkeys(names, axes)
    batch = random_batch(network.specs or (), 0)
    assert set(batch["token_type_ids"].unique().tolist()) == {0, 1, 2}
    assert network.tokenize is not None
    texts = network.tokenize(["a dog", "a dog and a cat"])
    assert list(texts) == list(names)
    assert {tensor.shape for tensor in texts.values()} == {texts["input_ids"].shape}
    torch.testing.assert_close(texts["token_type_ids"], torch.zeros_like(texts["input_ids"]))
    with torch.no_grad():
        ones = network.model(**{**batch, "token_type_ids": torch.ones_like(batch["input_ids"])})
        zeros = network.model(**{**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])})
    assert not torch.allclose(ones["last_hidden_state"], zeros["last_hidden_state"], atol=1e-3)


@pytest.mark.parametrize("types", [1, 2])
def test_roberta_is_given_no_types(types: int, tmp_path: Path) -> None:
    """Though its forward would take them, and its configuration may count two."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(vocab_size=20, max_position_embeddings=40, type_vocab_size=types, **TINY)
    files.save_quietly(RobertaModel(config), tmp_path)
    assert list(inputs_of(load_folder(tmp_path))) == ["input_ids", "attention_mask"]


def test_what_the_tokenizers_configuration_says_counts(tmp_path: Path) -> None:
    folder = files.bert_folder(tmp_path / "bert", **TINY)
    path = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **names}))
    network = load_folder(folder)
    assert list(inputs_of(network)) == ["input_ids", "attention_mask"]
    assert network.tokenize is not None
    assert list(network.tokenize(["a dog"])) == ["input_ids", "attention_mask"]


def test_images_come_in_batches_of_any_size(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    files.save_quietly(ViTModel(ViTConfig(**TINY, image_size=16, patch_size=8)), tmp_path)
    assert inputs_of(load_folder(tmp_path)) == {"pixel_values": {0: "batch_size"}}


def test_an_encoder_of_audio_is_not_told_to_be_two_parts(tmp_path: Path) -> None:
    """Its configuration is that of an encoder with a decoder, and the network has the first alone."""
    from transformers import WhisperConfig, WhisperForAudioClassification

    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 20}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
    config = WhisperConfig(**sizes, **layers, **tokens, decoder_attention_heads=2, max_source_positions=50)
    files.save_quietly(WhisperForAudioClassification(config), tmp_path)
    with pytest.raises(SourceError, match="takes 'input_features'; expected texts or images"):
        load_folder(tmp_path)


def test_a_network_of_texts_and_images_is_told_so(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    texts = {**TINY, "vocab_size": 20, "max_position_embeddings": 16, "eos_token_id": 2, "bos_token_id": 1}
    images = {**TINY, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=texts, vision_config=images, projection_dim=16)
    files.save_quietly(CLIPModel(config), tmp_path)
    with pytest.raises(SourceError, match=r"takes input_ids and pixel_values; expected .* model file"):
        load_folder(tmp_path)


def layoutlm_folder(path: Path) -> Path:
    from transformers import LayoutLMConfig, LayoutLMModel

    config = LayoutLMConfig(**TINY, vocab_size=20, max_position_embeddings=40, max_2d_position_embeddings=30)
    torch.manual_seed(0)
    files.save_quietly(LayoutLMModel(config), path)
    return path


def test_a_network_of_pages_takes_the_boxes_of_its_words(tmp_path: Path) -> None:
    network = load_folder(layoutlm_folder(tmp_path))
    assert list(inputs_of(network)) == ["input_ids", "bbox", "attention_mask", "token_type_ids"]
    batch = random_batch(network.specs or (), 0)
    boxes = batch["bbox"]
    assert boxes.shape == (*batch["input_ids"].shape, 4)
    assert bool((boxes[..., :2] <= boxes[..., 2:]).all())
    assert 20 < int(boxes.max()) < 30
    with torch.no_grad():
        here = network.model(**batch)["last_hidden_state"]
        elsewhere = network.model(**{**batch, "bbox": boxes // 2})["last_hidden_state"]
    assert not torch.allclose(here, elsewhere, atol=1e-3)


def test_texts_do_not_tell_where_words_lie(tmp_path: Path) -> None:
    network = load_folder(layoutlm_folder(tmp_path))
    with pytest.raises(SourceError, match=r"takes 'bbox' too.* give an .npz"):
        read_samples(files.text_file(tmp_path / "texts.txt"), network)


def test_inputs_that_a_file_would_lack_are_told(tmp_path: Path) -> None:
    """Networks that do without them, as if all were zero, give other numbers than they are used for."""
    from transformers import CanineConfig, CanineModel, TapasConfig, TapasModel

    tapas = TapasConfig(**TINY, vocab_size=20, max_position_embeddings=40, type_vocab_sizes=[2] * 7)
    files.save_quietly(TapasModel(tapas), tmp_path / "tapas")
    with pytest.raises(SourceError, match="takes input_ids and token_type_ids of several columns; expected"):
        load_folder(tmp_path / "tapas")
    canine = CanineConfig(**TINY, num_hash_buckets=8, local_transformer_stride=8, max_position_embeddings=64)
    files.save_quietly(CanineModel(canine), tmp_path / "canine")
    with pytest.raises(SourceError, match="has no 'vocab_size'; expected how many"):
        load_folder(tmp_path / "canine")


def test_experts_are_followed_by_operators_of_onnx(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(**TINY, num_key_value_heads=2, vocab_size=20, num_local_experts=4)
    files.save_quietly(MixtralForCausalLM(config), tmp_path)
    network = load_folder(tmp_path)
    batch = random_batch(network.specs or (), 0)
    graph = trace(network.model.eval(), batch, {name: {0: "batch", 1: "tokens"} for name in batch})
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert not {name for name in called if "grouped_mm" in name or "transformers" in name}


def test_an_encoder_whose_decoder_reads_the_same_text_is_one_part(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForQuestionAnswering

    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 20}
    config = BartConfig(**layers, **sizes, decoder_attention_heads=2, max_position_embeddings=40)
    files.save_quietly(BartForQuestionAnswering(config), tmp_path)
    network = load_folder(tmp_path)
    with torch.no_grad():
        given = network.model(**random_batch(network.specs or (), 0))
    assert list(given)[:2] == ["start_logits", "end_logits"]
