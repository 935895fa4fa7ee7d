"""BERT-large and Phi-2: published sizes, where weights and tokenizer are found, masks, and the graphs."""

import functools
import json
import socket
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svd2onnx.sources.model_file import load_model_file
from svd2onnx.values.errors import SourceError

pytest.importorskip("transformers")

MODELS = Path(__file__).parents[2] / "models"
NAMES = ("bert", "phi2")
HUB = {"bert": "google-bert/bert-large-uncased", "phi2": "microsoft/phi-2"}
PARAMETERS = {"bert": 335_141_888, "phi2": 2_779_683_840}
KNOWN = {
    "bert": {
        "encoder.embeddings.word_embeddings.weight": (30522, 1024),
        "encoder.embeddings.position_embeddings.weight": (512, 1024),
        "encoder.encoder.layer.23.attention.self.query.weight": (1024, 1024),
        "encoder.encoder.layer.23.intermediate.dense.weight": (4096, 1024),
        "encoder.pooler.dense.weight": (1024, 1024),
    },
    "phi2": {
        "decoder.model.embed_tokens.weight": (51200, 2560),
        "decoder.model.layers.31.self_attn.dense.weight": (2560, 2560),
        "decoder.model.layers.31.mlp.fc1.weight": (10240, 2560),
        "decoder.model.final_layernorm.weight": (2560,),
        "decoder.lm_head.weight": (51200, 2560),
        "decoder.lm_head.bias": (51200,),
    },
}
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 40,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "vocab_size": 200,
}
WORDS = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]

each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and an empty cache of the hub."""
    import huggingface_hub.constants

    def refuse(*_: object) -> None:
        raise AssertionError("the model file must work offline")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders as of the hub, with small networks."""
    folders = {}
    for name in NAMES:
        folders[name] = tmp_path_factory.mktemp(name)
        _inner(_load(name).architecture(**SMALL)).save_pretrained(folders[name])
    return folders


@pytest.fixture
def with_tokenizer(saved: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The same folders with a tokenizer, whose tokens are letters, and text of them in ``text``."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    kind |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    folders = {"text": tmp_path / "text"}
    folders["text"].mkdir()
    lines = ["".join("abcdefgh"[(i * i + j) % 8] for j in range(9)) for i in range(400)]
    lines += ["".join("stuvwxyz"[(i * i + j) % 8] for j in range(9)) for i in range(400)]
    (folders["text"] / "valid.txt").write_text("\n".join(lines), encoding="utf-8")
    for name in NAMES:
        folders[name] = tmp_path / name
        folders[name].mkdir()
        for path in saved[name].iterdir():
            (folders[name] / path.name).hardlink_to(path)
        letters.save(str(folders[name] / "tokenizer.json"))
        (folders[name] / "tokenizer_config.json").write_text(json.dumps(kind))
    return folders


def _load(name: str) -> ModuleType:
    return load_model_file(MODELS / f"{name}.py").module


def _inner(network: nn.Module) -> nn.Module:
    return network.encoder if hasattr(network, "encoder") else network.decoder


def _ids(batches: list[dict[str, Tensor]]) -> Tensor:
    return torch.cat([batch["input_ids"] for batch in batches])


@each
def test_size_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        network = _load(name).architecture()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]
    shapes = {key: tuple(tensor.shape) for key, tensor in network.named_parameters()}
    assert {key: shapes.get(key) for key in KNOWN[name]} == KNOWN[name]
    if name == "phi2":
        config = network.decoder.config
        assert config.rope_parameters["partial_rotary_factor"] == 0.4
        assert config.max_position_embeddings == 2048


@each
def test_random_weights_see_random_tokens(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, with_data = (
        load_model_file(MODELS / f"{name}.py", data, random_weights=True) for data in (None, tmp_path)
    )
    small = functools.partial(file.module.architecture, **SMALL | {"vocab_size": 51200})
    for each_file in (file, with_data):
        monkeypatch.setattr(each_file.module, "architecture", small)
    network, again = file.build(), with_data.build()
    batch = next(file.inputs("calibration"))
    with torch.no_grad():
        assert torch.equal(network(**batch), again(**batch))
    rows = torch.cat([_ids(list(file.inputs(s))) for s in ("calibration", "recovery", "evaluation")])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    with pytest.raises(SourceError, match="none with random weights: leave the data folder out"):
        next(with_data.inputs("evaluation"))


@each
def test_weights_come_from_the_folder(name: str, saved: dict[str, Path]) -> None:
    module = _load(name)
    expected = module.architecture(**SMALL)
    network = module.build(weights=saved[name])
    assert not any(part.training for part in network.modules())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert _inner(network).config._attn_implementation == "eager"
    for key, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor)
    # Without a tokenizer in the folder.
    assert len(next(module.inputs("evaluation"))) == 2


@each
def test_weights_come_from_the_cache(name: str, with_tokenizer: dict[str, Path], tmp_path: Path) -> None:
    entry = tmp_path / "cache" / f"models--{HUB[name].replace('/', '--')}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("0" * 40)
    (entry / "snapshots").mkdir()
    with_tokenizer[name].rename(entry / "snapshots" / ("0" * 40))
    network = _load(name).build()
    assert _inner(network).config.hidden_size == 40
    # A finished file is evaluated without a network: the tokenizer is found all the same.
    batch = next(_load(name).inputs("evaluation", with_tokenizer["text"]))
    assert WORDS[int(batch["input_ids"][0, 5])] in "stuvwxyz"


@each
def test_nothing_found_is_one_clear_error(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    path = MODELS / f"{name}.py"
    with pytest.raises(SourceError, match=rf"{HUB[name]} in the local.*--weights DIR.*--random-weights"):
        load_model_file(path).build()
    with pytest.raises(SourceError, match=rf"files of {HUB[name]} in .*; found no config\.json"):
        load_model_file(path, weights=tmp_path).build()
    other = saved[NAMES[1 - NAMES.index(name)]]
    with pytest.raises(SourceError, match=r"expected all weights of \w+ in .*; \d+ are missing, such as"):
        load_model_file(path, weights=other).build()


@each
def test_text_without_a_tokenizer_is_refused(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    file = load_model_file(MODELS / f"{name}.py", tmp_path, saved[name])
    file.build()
    with pytest.raises(
        SourceError, match=rf"expected the tokenizer of {HUB[name]}.*there is none in .*{name}"
    ):
        next(file.inputs("calibration"))


def test_bert_reads_text_between_its_signs(with_tokenizer: dict[str, Path]) -> None:
    file = load_model_file(MODELS / "bert.py", with_tokenizer["text"], with_tokenizer["bert"])
    splits = {split: list(file.inputs(split)) for split in ("calibration", "recovery", "evaluation")}
    assert splits["calibration"][0]["input_ids"].shape == (8, 128)
    for split, letters in (("calibration", "abcdefgh"), ("evaluation", "stuvwxyz")):
        ids = _ids(splits[split])
        assert ids[:, 0].tolist() == [1] * len(ids)
        assert ids[:, -1].tolist() == [2] * len(ids)
        assert {WORDS[i] for i in ids[:, 1:-1].flatten().tolist()} <= {*letters, "[UNK]"}
        assert all(bool((batch["attention_mask"] == 1).all()) for batch in splits[split])
    calibration = _ids(splits["calibration"])
    assert torch.equal(_ids(splits["recovery"])[: len(calibration)], calibration)


def test_phi2_counts_its_pieces_of_text_and_judges_them(with_tokenizer: dict[str, Path]) -> None:
    file = load_model_file(MODELS / "phi2.py", with_tokenizer["text"], with_tokenizer["phi2"])
    network = file.build()
    batches = list(file.inputs("evaluation"))
    assert batches[0]["input_ids"].shape == (2, 256)
    assert torch.cat([batch["piece"] for batch in batches]).tolist() == list(range(len(_ids(batches))))
    assert {WORDS[i] for i in _ids(batches).flatten().tolist()} <= {*"stuvwxyz", "[UNK]"}
    with torch.no_grad():
        logits = network(batches[0]["input_ids"], batches[0]["attention_mask"])
    columns = file.metric({"logits": logits.numpy()}, {k: v.numpy() for k, v in batches[0].items()})
    expected = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batches[0]["input_ids"][:, 1:].flatten()
    )
    result = file.summary(columns)
    assert result["ln_perplexity"] == pytest.approx(float(expected), rel=1e-5)
    assert result["perplexity"] == pytest.approx(float(expected.exp()), rel=1e-4)


def test_phi2_measures_of_known_logits() -> None:
    module = _load("phi2")
    # Of four tokens the right one has odds of 3:1:1:1, twice.
    logits = np.zeros((1, 3, 4), dtype=np.float32)
    logits[0, 0, 2] = logits[0, 1, 1] = np.log(3)
    ids = np.array([[0, 2, 1]])
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "piece": np.array([0])}
    result = module.summary(module.metric({"logits": logits}, batch))
    assert result == {"ln_perplexity": pytest.approx(np.log(2)), "perplexity": pytest.approx(2)}
    del batch["piece"]
    assert module.metric({"logits": logits}, batch) == {}


@each
def test_own_mask_equals_that_of_transformers(name: str) -> None:
    network = _load(name).architecture(**SMALL)
    ids = torch.randint(5, 200, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 9:], mask[1, 4:] = 0, 0
    with torch.no_grad():
        if name == "bert":
            expected = network.encoder(input_ids=ids, attention_mask=mask).pooler_output
            output = network(ids, mask)
        else:
            expected = network.decoder(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask > 0]
            output = network(ids, mask)[mask > 0]
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-6)


@each
def test_exported_graph_takes_any_batch_and_length(name: str, tmp_path: Path) -> None:
    import onnxruntime

    module = _load(name)
    network = module.architecture(**SMALL)
    ids = torch.randint(5, 200, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    program = torch.onnx.export(
        network,
        kwargs={"input_ids": ids, "attention_mask": mask},
        dynamo=True,
        opset_version=21,
        verbose=False,
        dynamic_shapes=module.dynamic_shapes,
    )
    program.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for rows, length in ((1, 4), (3, 9)):
        batch = {"input_ids": ids[:rows, :length], "attention_mask": mask[:rows, :length]}
        (output,) = session.run(None, {key: tensor.numpy() for key, tensor in batch.items()})
        with torch.no_grad():
            np.testing.assert_allclose(output, network(**batch).numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_bert_of_full_size_runs_with_random_weights() -> None:
    file = load_model_file(MODELS / "bert.py", random_weights=True)
    network = file.build()
    batch = next(file.inputs("evaluation"))
    with torch.no_grad():
        embedding = network(**batch)
    assert embedding.shape == (8, 1024)
    assert 0.01 < float(embedding.std()) < 1
