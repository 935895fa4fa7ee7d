"""Networks of every width and rank, each compressed and exported once for all tests of the graph."""

from collections.abc import Callable

import pytest
from torch import nn

from svd2onnx.values.schema import QuantSpec
from tests.svd2onnx.graph.exported import Case, Exported
from tests.svd2onnx.networks import batches_of, compress, seeded


@pytest.fixture(scope="session")
def export_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Exported]:
    """What was made is shared: not to be changed."""
    made: dict[Case, Exported] = {}

    def export(case: Case) -> Exported:
        if case not in made:
            kind, bits, rank = case
            network: nn.Module = seeded(kind)
            compressed = compress(network, batches_of(network), QuantSpec(bits, 32), rank)
            path = tmp_path_factory.mktemp("exported") / "graph.onnx"
            made[case] = Exported(compressed, path, compressed.export(path), bits, rank)
        return made[case]

    return export
