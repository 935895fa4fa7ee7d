"""Who competes, with which settings: the table behind the frontier.

Every peer is shown over its own range of settings, so that its best at a size is on the plot: blocks
of 32 to 128, mostly with zero points where it takes them (0.0251 against 0.0307 without, for rounding
MiniLM to 4 bits in blocks of 32). onnxsim has 4 bits alone, NNCF 4 and 8. Some settings are there for
the reason why they fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.peers import nncf_weights, onnxsim_ptq, ort_nbits, ours, plain_gptq, plain_svd, planned
from benchmarks.task import Task


@dataclass(frozen=True)
class Contender:
    """One point of the plot: ``compress(task, output, **setting)`` under the name of its method."""

    name: str
    compress: Callable[..., None]
    setting: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The setting in words, unique under a name: "bits=4 block=32"."""
        words = {key: value for key, value in self.setting.items() if key not in ("algorithm", "method")}
        return " ".join(f"{key}={value}" for key, value in words.items()) or "default"

    def run(self, task: Task, output: Path) -> None:
        self.compress(task, output, **self.setting)

    def build(self, task: Task, output: Path) -> None:
        """``run`` and say so, unless ``output`` is there already."""
        if not output.exists():
            click.echo(f"building {output.name}", err=True)
            self.run(task, output)


def contenders() -> list[Contender]:
    """All of them: svd2onnx, then the strongest peers first, so that a short run has those."""
    return [*_ours(), *_plain_gptq(), *_onnxsim_gptq(), *_onnxruntime(), *_nncf(), *_onnxsim(), *_plain_svd()]


def _ours() -> list[Contender]:
    sizes = (4.5, 3.5, 2.5, 4.25, 3.0, 2.0, 4.6, 8.0, 6.0, 5.0, 2.25, 4.0)
    points = [
        *(_of("svd2onnx auto", planned, bits=bits) for bits in sizes),
        *(
            _of("svd2onnx auto, retrained", planned, bits=bits, recover=steps)
            for bits, steps in ((2.0, 800), (3.0, 500), (4.25, 300))
        ),
        *(_of("svd2onnx quantize", ours, bits=8, block_size=block) for block in (128, 32)),
        *(_of("svd2onnx quantize", ours, bits=4, block_size=block) for block in (128, 64, 32)),
        *(_of("svd2onnx quantize", ours, bits=2, block_size=block) for block in (64, 32)),
    ]
    article = [
        _of("svd2onnx svd (the article)", ours, method="svd", bits=bits, epsilon=epsilon)
        for bits in (8, 4)
        for epsilon in (0.05, 0.2, 0.4)
    ]
    return points + article


def _plain_gptq() -> list[Contender]:
    return [
        *(
            _of("plain GPTQ", plain_gptq, bits=bits, block=block, order=True)
            for bits, blocks in ((4, (32, 64, 128)), (2, (32, 64, 128)), (8, (128,)))
            for block in blocks
        ),
        *(_of("plain GPTQ", plain_gptq, bits=4, block=block) for block in (32, 128)),
    ]


def _onnxsim_gptq() -> list[Contender]:
    return [
        *(_of("onnxsim GPTQ", onnxsim_ptq, algorithm="gptq", block=block) for block in (32, 64, 128)),
        _of("onnxsim GPTQ", onnxsim_ptq, algorithm="gptq", block=32, damping=0.1),
        _of("onnxsim GPTQ + LQER", onnxsim_ptq, algorithm="gptq+lqer", block=32, rank=8),
    ]


def _onnxruntime() -> list[Contender]:
    rtn, hqq, k_quant = "onnxruntime RTN", "onnxruntime HQQ", "onnxruntime k-quant"
    return [
        *(
            _of(hqq, ort_nbits, algorithm="hqq", bits=bits, block=block)
            for bits, blocks in ((4, (32, 64, 128)), (2, (32, 64, 128)), (8, (128,)))
            for block in blocks
        ),
        *(
            _of(k_quant, ort_nbits, algorithm="k_quant", bits=bits, block=block)
            for bits, blocks in ((4, (32, 64, 128)), (8, (32, 128)), (2, (32,)))
            for block in blocks
        ),
        _of("onnxruntime GPTQ", ort_nbits, algorithm="gptq", bits=4, block=32),
        *(
            _of(rtn, ort_nbits, algorithm="default", bits=bits, block=block)
            for bits, blocks in ((8, (32, 128)), (4, (32, 64, 128)), (2, (16, 32, 64, 128)))
            for block in blocks
        ),
        *(
            _of(rtn, ort_nbits, algorithm="default", bits=bits, block=32, symmetric=True, qdq=True)
            for bits in (8, 4)
        ),
    ]


def _nncf() -> list[Contender]:
    return [
        *(
            _of("NNCF scale estimation", nncf_weights, mode=mode, block=block, scale_estimation=True)
            for mode, block in (("INT4_ASYM", 32), ("INT4_ASYM", 64), ("INT4_ASYM", 128), ("INT4_SYM", 64))
        ),
        _of("NNCF AWQ", nncf_weights, mode="INT4_ASYM", block=64, awq=True),
        _of("NNCF AWQ", nncf_weights, mode="INT4_ASYM", block=64, awq=True, scale_estimation=True),
        _of("NNCF GPTQ", nncf_weights, mode="INT4_ASYM", block=64, gptq=True),
        *(_of("NNCF", nncf_weights, mode=mode) for mode in ("INT8_SYM", "INT8_ASYM")),
        *(_of("NNCF", nncf_weights, mode="INT4_ASYM", block=block) for block in (32, 64, 128)),
        *(_of("NNCF", nncf_weights, mode="INT4_SYM", block=block) for block in (32, 128)),
    ]


def _onnxsim() -> list[Contender]:
    return [
        _of("onnxsim RTN", onnxsim_ptq, algorithm="rtn", block=32),
        _of("onnxsim LQER", onnxsim_ptq, algorithm="lqer", block=32, rank=8),
        *(
            _of("onnxsim SVDQuant", onnxsim_ptq, algorithm="svdquant", rank=rank, block=block, smooth=smooth)
            for rank, block, smooth in ((16, 32, None), (16, 128, None), (32, 128, 0.5))
        ),
    ]


def _plain_svd() -> list[Contender]:
    return [_of("plain SVD, float16", plain_svd, share=share) for share in (1.0, 0.5, 0.25, 0.125)]


def _of(name: str, peer: Any, **setting: Any) -> Contender:
    return Contender(name, peer.compress, setting)
