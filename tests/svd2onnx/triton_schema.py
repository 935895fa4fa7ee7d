"""The schema of config.pbtxt that NVIDIA publishes with its client, and what its server asks beyond it."""

import importlib.util
from importlib.metadata import distribution
from types import ModuleType
from typing import Any

from google.protobuf import text_format


def _schema() -> ModuleType:
    # By its path, because the package around it needs gRPC, and an older protobuf than ours.
    path = distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


schema = _schema()


def parsed(text: str) -> Any:
    """The ModelConfig of ``text``; text_format.ParseError where the schema does not have what it says."""
    return text_format.Parse(text, schema.ModelConfig())


def shape_of(tensor: Any, config: Any) -> list[int]:
    """That of the graph's tensor, as the onnxruntime backend compares it with the graph's own."""
    shape = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return [*([-1] if config.max_batch_size else []), *shape]


def assert_valid(config: Any) -> None:
    """What the server itself asks of a configuration before it loads the model."""
    for tensor in (*config.input, *config.output):
        assert tensor.name
        assert tensor.data_type != schema.TYPE_INVALID
        assert tensor.dims
        assert all(dim >= 1 or dim == -1 for dim in tensor.dims)
        if tensor.HasField("reshape"):
            assert config.max_batch_size > 0 or tensor.reshape.shape
    assert config.HasField("dynamic_batching") == (config.max_batch_size > 0)
    for warm_up in config.model_warmup:
        assert (warm_up.batch_size > 0) == (config.max_batch_size > 0)
        assert set(warm_up.inputs) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            own = warm_up.inputs[tensor.name]
            assert own.data_type == tensor.data_type
            assert len(own.dims) == len(tensor.dims)
            assert all(size == dim or dim == -1 for size, dim in zip(own.dims, tensor.dims, strict=True))
            assert all(size >= 1 for size in own.dims)
