"""The files that tests of the packages write are broken here."""

from tests.svd2onnx.conftest import compressed_file as compressed_file
from tests.svd2onnx.conftest import model_file as model_file
from tests.svd2onnx.conftest import write_model_file as write_model_file
