"""Files with a cache: standard names, PyTorch's greedy text, all layers fused, and what is refused."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from svd2onnx.cli.main import main
from svd2onnx.graph.export import export_float
from svd2onnx.graph.file_formats import to_format
from svd2onnx.network.decoder import WithPast, traced_with_past
from svd2onnx.network.outputs import tensors_of
from svd2onnx.pipeline import final_report, timing
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.pipeline.strict_check import TOLERANCE, check_strict
from svd2onnx.reporting.report import CompressionReport
from svd2onnx.sources.huggingface import load_folder
from svd2onnx.sources.load import load_source
from svd2onnx.sources.model_file import load_model_file
from svd2onnx.values.errors import SourceError, VerificationError
from svd2onnx.values.settings import FileFormat, Settings
from svd2onnx_runtime import Footprint, Roofline, generate, open_session
from svd2onnx_runtime.generate import logits_in_pieces

transformers = pytest.importorskip("transformers")

MODELS = Path(__file__).parents[3] / "models"
WORDS = ["<end>", "<pad>", *"abcdefghijklmnopqrstuvwxyz "]
LLAMA = {
    "vocab_size": 48,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def llama(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA | changes, attn_implementation="eager")
    return transformers.LlamaForCausalLM(config).eval()


def greedy(decoder: nn.Module, ids: Tensor, mask: Tensor, count: int) -> list[list[int]]:
    """What PyTorch adds, by the implementation of ``transformers``, cache and all."""
    with torch.no_grad():
        made = decoder.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=None,
            pad_token_id=1,
        )
    return made[:, ids.shape[1] :].tolist()


def without_cache(network: nn.Module, ids: Tensor, mask: Tensor, count: int) -> list[list[int]]:
    """What a network without a cache adds, which reads the whole text for each token."""
    for _ in range(count):
        with torch.no_grad():
            logits = tensors_of(network(input_ids=ids, attention_mask=mask))[0]
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids[:, -count:].tolist()


def prompts(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Three of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, vocabulary, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :8] = 0
    return ids, mask


# Whole networks, by way of model files and of folders.


def of_smollm2() -> tuple[nn.Module, WithPast]:
    module = load_model_file(MODELS / "smollm2.py").module
    network = module.CausalLanguageModel(llama()).eval()
    return network, module.with_past(network)


def of_phi2() -> tuple[nn.Module, WithPast]:
    module = load_model_file(MODELS / "phi2.py").module
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "num_hidden_layers": 1}
    network = module.architecture(**sizes, vocab_size=60, initializer_range=0.3)
    return network, module.with_past(network)


def of_folder(folder: Path) -> tuple[nn.Module, WithPast]:
    config = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    network = load_folder(folder)
    assert network.with_past is not None
    return network.model, network.with_past(network.model)


each = pytest.mark.parametrize("name", ["smollm2", "phi2", "gpt2"])


def load(name: str, folder: Path) -> tuple[nn.Module, WithPast]:
    return {"smollm2": of_smollm2, "phi2": of_phi2, "gpt2": lambda: of_folder(folder)}[name]()


@each
def test_pieces_give_what_the_network_without_a_cache_does(name: str, tmp_path: Path) -> None:
    network, cached = load(name, tmp_path)
    ids, mask = prompts(48)
    if name == "gpt2":  # what transformers makes of padding on the left, unless it is given positions
        ids, mask = ids[:1], mask[:1]
    for real in (mask, mask.flip(1)):
        past, pieces = cached.past(len(ids), 0), []
        with torch.no_grad():
            for begin, end in ((0, 4), (4, 7), (7, 8), (8, 9)):
                logits, past = cached(ids[:, begin:end], real[:, :end], past)
                pieces.append(logits)
            expected = tensors_of(network(ids, real))[0]
        assert {tensor.shape[2] for pair in past for tensor in pair} == {9}
        where = real.bool()
        torch.testing.assert_close(torch.cat(pieces, 1)[where], expected[where], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["phi2", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_graph_with_a_cache_generates_what_pytorch_does(name: str, tmp_path: Path) -> None:
    network, cached = load(name, tmp_path)
    path = tmp_path / "cached.onnx"
    export_float(network, {}, {}, path, traced=traced_with_past(cached))
    ids, mask = prompts(cached.decoder.config.vocab_size)
    if name == "gpt2":
        ids, mask = ids[:1], mask[:1]
    turned = {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}  # padded on the right
    batches = [{"input_ids": ids, "attention_mask": mask}, turned]
    batches += [{"input_ids": ids[:1, :length], "attention_mask": mask[:1, :length]} for length in (1, 2)]
    check = check_strict(path, network, network, batches, "kl")
    assert check.relative_error <= TOLERANCE
    assert check.fidelity == pytest.approx(1, abs=1e-6)
    made = generate(open_session(path, "cpu", strict=True), ids.numpy(), 20, attention_mask=mask.numpy())
    assert made.tokens.tolist() == greedy(cached.decoder, ids, mask, 20)
    assert len(np.unique(made.tokens)) > 3  # a network that repeats itself would agree with many


# A run, from a folder to a file.


def word(token: int) -> str:
    return WORDS[token] if token < len(WORDS) else ""


@dataclass(frozen=True)
class Run:
    folder: Path
    output: Path
    reference: Path
    report: CompressionReport
    compressed: nn.Module
    original: nn.Module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(folder)
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    text = folder.parent / "text.txt"
    text.write_text("\n".join("".join(WORDS[2 + (i * i + j * j) % 26] for j in range(24)) for i in range(24)))
    output, reference = folder.parent / "out.onnx", folder.parent / "float.onnx"
    seen: list[nn.Module] = []

    def spying(path: Path, compressed: nn.Module, original: nn.Module, *rest: Any) -> Any:
        seen[:] = [compressed, original]
        return check_strict(path, compressed, original, *rest)

    settings = Settings(
        method="quantize", calibration=text, calibration_samples=16, with_past=True, provider="cpu", threads=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final_report, "check_strict", spying)
        patch.setattr(timing, "BATCHES", (1,))
        report = compress_export(folder, output, settings, reference=reference)
    return Run(folder, output, reference, report, *seen)


def test_inputs_and_outputs_have_the_names_of_the_field(run: Run) -> None:
    for path in (run.output, run.reference):
        session = open_session(path, "cpu")
        parts = [f"{i}.{part}" for i in range(2) for part in ("key", "value")]
        assert {value.name: value.shape for value in session.get_inputs()} == {
            "input_ids": ["batch_size", "sequence_length"],
            "attention_mask": ["batch_size", "past_sequence_length + sequence_length"],
            **{f"past_key_values.{part}": ["batch_size", 2, "past_sequence_length", 16] for part in parts},
        }
        logits, *presents = session.get_outputs()
        assert (logits.name, logits.shape) == ("logits", ["batch_size", "sequence_length", 48])
        assert [value.name for value in presents] == [f"present.{part}" for part in parts]


def test_the_text_is_that_of_pytorch_in_a_strict_session(run: Run) -> None:
    ids, mask = prompts(len(WORDS))
    texts = {}
    for path, network in ((run.output, run.compressed), (run.reference, run.original)):
        session = open_session(path, "cpu", strict=True)
        made = generate(session, ids.numpy(), 24, attention_mask=mask.numpy())
        texts[path] = made.tokens.tolist()
        assert texts[path] == without_cache(network, ids, mask, 24)
    assert texts[run.output] != texts[run.reference]
    assert texts[run.reference] == greedy(run.original.network, ids, mask, 24)


def test_a_graph_whose_cache_is_wrong_is_refused(run: Run, tmp_path: Path) -> None:
    """Keys and values change places: nothing but a second piece of the text shows it."""
    path = tmp_path / "wrong.onnx"
    model = onnx.load(run.reference)
    names = {"present.1.key": "present.1.value", "present.1.value": "present.1.key"}
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    onnx.save(model, path)
    ids, mask = prompts(48)
    batch = {"input_ids": ids[:1], "attention_mask": mask[:1]}
    assert check_strict(run.reference, run.original, run.original, [batch], "kl").relative_error <= TOLERANCE
    with pytest.raises(VerificationError, match="differs from the compressed network"):
        check_strict(path, run.original, run.original, [batch], "kl")


def test_every_layer_is_fused_and_judged(run: Run) -> None:
    report = run.report
    assert report.certificate.ok
    linears = [layer for layer in report.layers if layer.kind == "linear" and layer.form != "float"]
    assert len(report.certificate.fused) == len(linears) == 10  # keys' and values' are too small
    assert report.strict_relative_error <= TOLERANCE
    assert report.deployed.fidelity == pytest.approx(report.strict_fidelity, abs=0.02)
    assert report.deployed.objective == "kl"
    assert [latency.past for latency in report.latency] == [0, 24]
    assert report.latency[1].median_ms > 0


def test_the_fused_kernels_run_at_every_length_of_the_past(run: Run) -> None:
    for past in ([], ["--dim", "past_sequence=7"]):
        arguments = ["certify", run.output, "--provider", "cpu", "--dim", "sequence=1", "--json", *past]
        result = CliRunner().invoke(main, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["fused"] == list(run.report.certificate.fused)


@pytest.mark.parametrize(
    "form",
    [FileFormat("matmulnbits"), FileFormat("folded"), FileFormat(dtype="float16")],
    ids=lambda form: str(form),
)
def test_other_forms_generate_too(run: Run, tmp_path: Path, form: FileFormat) -> None:
    path = tmp_path / "other.onnx"
    to_format(run.output, path, form)
    ids, mask = (tensor.numpy() for tensor in prompts(len(WORDS)))
    expected, logits = (
        logits_in_pieces(open_session(own, "cpu"), {"input_ids": ids, "attention_mask": mask})
        for own in (run.output, path)
    )
    difference = (logits - expected)[mask > 0]
    assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(expected[mask > 0])
    assert generate(open_session(path, "cpu"), ids, 4, attention_mask=mask).tokens.shape == (3, 4)


def test_the_command_shows_both_texts_and_their_rates(run: Run) -> None:
    task = ("--task", run.folder, "--prompt", "abc", "--provider", "cpu", "--threads", "1", "--repeats", "2")
    arguments = ["generate", run.output, "--reference", run.reference, *task, "--tokens", "12"]
    result = CliRunner().invoke(main, list(map(str, [*arguments, "--json"])))
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["prompt_tokens"], record["provider"], record["threads"]) == (3, "cpu", 1)
    reference, graph = record["graphs"]
    for made, path in ((reference, run.reference), (graph, run.output)):
        tokens = generate(open_session(path, "cpu", threads=1), np.array([[2, 3, 4]]), 12).tokens[0].tolist()
        assert made["tokens"] == tokens
        shown = tokens[: tokens.index(0)] if 0 in tokens else tokens
        assert made["text"].replace(" ", "") == "".join(map(word, shown)).replace(" ", "")
        assert made["tokens_per_s"] > 0
    assert reference["speed_ratio"] == 1
    assert reference["same_tokens"] == 12
    same = [a == b for a, b in zip(reference["tokens"], graph["tokens"], strict=True)]
    assert graph["same_tokens"] == (same.index(False) if False in same else 12)
    shown = CliRunner().invoke(main, list(map(str, arguments)))
    assert shown.exit_code == 0, shown.output
    assert f"graph: abc{graph['text']}" in shown.stdout
    assert "tokens/s" in shown.stdout


def test_bench_times_a_prompt_and_a_token(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("svd2onnx_runtime.bench")  # whose name is a function in the package
    for name, known in (  # what takes seconds to measure, and is not asked about here
        ("measure_footprint", Footprint(0.1, 1, 1, 1, None, None)),
        ("measure_roofline", Roofline(1e9, {"float32": 1e9})),
    ):
        monkeypatch.setattr(module, name, lambda *_, known=known: known)
    output = tmp_path / "bench.json"
    arguments = ["bench", run.output, "--reference", run.reference, "--batch", "2", "--repeats", "2"]
    arguments += ["--dim", "sequence=12", "--provider", "cpu", "--threads", "1", "-o", output]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    timings = json.loads(output.read_text())["batches"]
    assert [(timing["batch"], timing["past"]) for timing in timings] == [(2, 0), (2, 12)]
    assert "2, a token after 12" in result.stdout


# What is refused, in one line.


def failure(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


def test_a_source_without_a_cache_is_refused(model_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    line = failure("compress-export", model_file, "-o", output, "--with-past")
    assert "--with-past was given" in line
    assert "define with_past(network)" in line
    assert not list(tmp_path.glob("out*"))


def test_a_network_that_takes_no_texts_is_refused(write_model_file: Any, tmp_path: Path) -> None:
    add = "from svd2onnx import WithPast\n\ndef with_past(network):\n    return WithPast(network)"
    line = failure("compress-export", write_model_file(add=add), "-o", tmp_path / "out.onnx", "--with-past")
    assert "--with-past is for networks of input_ids and attention_mask" in line
    assert "'ids': (8, 6)" in line
    assert not list(tmp_path.glob("out*"))


def test_something_else_in_place_of_a_cache_is_refused(write_model_file: Any) -> None:
    file = write_model_file(add="def with_past(network):\n    return network")
    source = load_source(file, Settings())
    assert source.with_past is not None
    with pytest.raises(SourceError, match=r"with_past\(\) in .* must return a WithPast, not Network"):
        source.with_past(source.build())


def test_folders_offer_a_cache_where_all_of_the_past_is_attended_to(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": 20, "num_key_value_heads": 2}
    offers = {}
    for name, window in (("full", None), ("window", 8)):
        config = transformers.MistralConfig(**sizes, sliding_window=window)
        transformers.MistralForCausalLM(config).save_pretrained(tmp_path / name)
        offers[name] = load_folder(tmp_path / name).with_past is not None
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "encoder")
    offers["encoder"] = load_folder(tmp_path / "encoder").with_past is not None
    transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path / "biased")
    offers["biased"] = load_folder(tmp_path / "biased").with_past is not None
    assert offers == {"full": True, "window": False, "encoder": False, "biased": False}


def test_generating_without_a_tokenizer_or_a_cache_is_refused(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    prompt = ("--prompt", "abc", "--provider", "cpu")
    assert "no function tokenizer()" in failure("generate", run.output, "--task", model_file, *prompt)
    assert str(tmp_path) in failure("generate", run.output, "--task", tmp_path, *prompt)
    empty = failure("generate", run.output, "--task", run.folder, "--prompt", "", "--provider", "cpu")
    assert "the prompt has no token" in empty
    plain = tmp_path / "plain.onnx"
    export_float(nn.Linear(4, 4), {"input": torch.ones(2, 4)}, {}, plain)
    assert "--with-past" in failure("generate", plain, "--task", run.folder, *prompt)
