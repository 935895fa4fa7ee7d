# make demo   plan all-MiniLM-L6-v2 for 0.13 of its size, certify the file, compare it with the original
# make test   the test suite
# make test-graphs   put each ONNX file of the tests through onnxsim and onnxruntime, optimized and not
# make failures   kill, interrupt and starve runs at many moments, and damage thousands of files: half an hour
# make lint   style and types
# make test-lowest    the main tests with the oldest releases that pyproject.toml allows, in .venv-lowest
# make test-serving   the examples in HTTP, C++, Node and a browser, with what they need installed beside them
# make reference      write docs/reference.md anew from the code
#
# Needs GNU make and a python3.11 or newer; everything else is installed into .venv. All of them take the
# onnxruntime for the CPU; with GPU=1 (make demo GPU=1) they take the one for CUDA in its place.

PYTHON ?= python3
BIN := .venv/bin
RUNTIME := $(if $(GPU),gpu,cpu)
OTHER_ONNXRUNTIME := $(if $(GPU),onnxruntime,onnxruntime-gpu)
INSTALLED := .venv/.installed-$(RUNTIME)

.PHONY: demo test test-graphs lint failures test-lowest test-serving reference

demo: $(INSTALLED)
	mkdir -p build
	$(BIN)/svd2onnx compress-export models/minilm.py -o build/minilm.onnx \
		--reference build/minilm.float32.onnx --target-size 0.13x
	$(BIN)/svd2onnx certify build/minilm.onnx --provider cpu
	$(BIN)/svd2onnx evaluate build/minilm.onnx --reference build/minilm.float32.onnx \
		--task models/minilm.py

# One thread for each process: small networks gain nothing from more.
PARALLEL := -n logical --maxprocesses 4 --dist worksteal

test: $(INSTALLED)-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

test-graphs: $(INSTALLED)-dev
	OMP_NUM_THREADS=1 SVD2ONNX_TEST_GRAPHS=1 $(BIN)/python -m pytest tests/svd2onnx/graph tests/svd2onnx/pipeline \
		tests/svd2onnx/deployment tests/svd2onnx/latency tests/svd2onnx/study tests/svd2onnx/sources

failures: $(INSTALLED)-dev
	$(BIN)/python -m pytest -m "slow or not slow" tests/failures/test_resuming.py tests/svd2onnx/compute/test_executors.py tests/failures/test_fuzz_json.py \
		tests/failures/test_fuzz_graphs.py

lint: $(INSTALLED)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

test-lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest $(PARALLEL) \
		tests/runtime tests/svd2onnx tests/models/test_minilm.py tests/examples/test_http.py tests/docs/test_tutorial.py

# Needs node and npm, cmake and a C++ compiler, chromium, and apt for the headers of onnxruntime.
test-serving: $(INSTALLED)-dev
	cd examples/node && npm ci --no-audit --no-fund
	cd examples/browser && npm ci --no-audit --no-fund
	examples/cpp/get_onnxruntime.sh $(CURDIR)/$(BIN)/python
	SVD2ONNX_TEST_SERVING=1 $(BIN)/python -m pytest tests/examples

reference: $(INSTALLED)-dev
	$(BIN)/python docs/generate_reference.py

# The two onnxruntimes overwrite each other's files, so the other one goes first, and with it what is left
# of both. Its stamps go too, or a later make would believe that it is still there.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	rm -f .venv/.installed-*
	if $(BIN)/python -m pip show --quiet $(OTHER_ONNXRUNTIME) 2>/dev/null; then \
		$(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu; fi
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(RUNTIME),minilm]"
	touch $@

$(INSTALLED)-dev: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev
	touch $@

.venv-lowest/.installed: pyproject.toml constraints-lowest.txt | .venv-lowest/bin/python
	.venv-lowest/bin/python -m pip install --quiet -c constraints-lowest.txt -e ".[cpu,minilm,serving,smollm2,vision]" --group test
	touch $@

# --group needs pip 25.1, which is newer than the pip that comes with many a Python.
%/bin/python:
	$(PYTHON) -m venv $*
	$@ -m pip install --quiet "pip>=25.1"
