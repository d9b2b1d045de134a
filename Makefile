# Each target works alone on a fresh machine: it makes its own virtual environment and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= outputs
# Two workers suit a small machine; raise it on a larger one. Each runs on one thread: more would wait for each other.
TEST_WORKERS ?= 2
# Options of gpu-check.
GPU_CHECK ?=
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo train-demo test conformance test-openclip test-spconv test-triton test-scale test-demo test-sanitizers gpu-check docs lint format
.PHONY: clean help

help:
	@echo "make demo           install, run the sample checkpoint on the sample frames, print AP, write pictures"
	@echo "make train-demo     install, train the tiny preset on the sample frames for about ten minutes on two cores"
	@echo "make test           install, run the tests"
	@echo "make conformance    transformers' own tests on our configuration, models and processor (downloads them)"
	@echo "make test-openclip  the tests that need open_clip, in an environment of their own"
	@echo "make test-spconv    the tests that need spconv, in an environment of their own"
	@echo "make test-triton    the tests that need Triton, in an environment of their own"
	@echo "make test-scale     the tests of two Ray nodes and of an S3 server on loopback, in an environment of their own"
	@echo "make test-demo      the tests of the demo page, in headless Chromium, in an environment of their own"
	@echo "make test-sanitizers  the tests of the C kernels, built with the address and undefined behaviour sanitizers"
	@echo "make gpu-check      what only a GPU can show, in seven minutes; GPU_CHECK=\"--wheels FOLDER\" (CONTRIBUTING.md)"
	@echo "make docs           the API reference from the docstrings, its links checked: $(OUT)/docs/bifusion_hf.html"
	@echo "make lint           check style with ruff, and the types of the public API with mypy"

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[test]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/bifusion-evaluate sample --data sample --split val --output $(OUT)/demo/results.json
	$(BIN)/bifusion-predict --data sample --split val --rows 0 1 2 3 4 5 --output $(OUT)/demo
	@echo "Pictures, coloured point clouds and segments: $(OUT)/demo"

train-demo: $(VENV)/installed
	$(BIN)/bifusion-train tiny_demo --output_dir $(OUT)/train-demo --overwrite_output_dir

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS)

conformance: $(VENV)/installed
	$(INSTALL) parameterized==0.9.0
	$(BIN)/python tests/conformance/fetch_transformers_tests.py $(VENV)/transformers-tests
	OMP_NUM_THREADS=1 TRANSFORMERS_TESTS=$(VENV)/transformers-tests $(BIN)/python -m pytest -n $(TEST_WORKERS) tests/conformance

# open_clip needs torchvision, which fits one torch only and would break the main environment of a CPU build.
$(VENV)-openclip/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-openclip
	$(VENV)-openclip/bin/python -m pip install --quiet --constraint constraints.txt torchvision --editable ".[test,openclip]"
	touch $@

test-openclip: $(VENV)-openclip/installed
	$(VENV)-openclip/bin/python -m pytest tests/openclip

# A wheel for CUDA 12.1 also runs its native algorithm on a CPU, which is what these tests use.
$(VENV)-spconv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-spconv
	$(VENV)-spconv/bin/python -m pip install --quiet --constraint constraints.txt spconv-cu121 --editable ".[test]"
	touch $@

# Memory that is read or written outside of its bounds ends the run. The library has a cache folder of its own.
test-sanitizers: $(VENV)/installed
	OMP_NUM_THREADS=2 XDG_CACHE_HOME=$(CURDIR)/$(VENV)/sanitized CC="cc -g -fsanitize=address,undefined -fno-sanitize-recover" \
		LD_PRELOAD=$$(cc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest \
		tests/superpoints/test_superpoint_backends.py tests/sparse/test_compiled_backend.py tests/sparse/test_lines.py \
		tests/sparse/test_negatives.py tests/mask_parts/test_mask_part_backends.py -m "not slow"

test-spconv: $(VENV)-spconv/installed
	$(VENV)-spconv/bin/python -m pytest tests/sparse

# Triton unpacks to 700 MB; its interpreter and its compiler need no GPU.
$(VENV)-triton/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-triton
	$(VENV)-triton/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test,triton]"
	touch $@

test-triton: $(VENV)-triton/installed
	OMP_NUM_THREADS=1 $(VENV)-triton/bin/python -m pytest tests/sparse/test_triton_backend.py

# Ray and the S3 server unpack to 400 MB.
$(VENV)-scale/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-scale
	$(VENV)-scale/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test-scale]"
	touch $@

test-scale: $(VENV)-scale/installed
	OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 $(VENV)-scale/bin/python -m pytest tests/scale

# Without Chromium and its driver (Debian: chromium, chromium-driver) only the tests of the page's parts run.
$(VENV)-demo/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-demo
	$(VENV)-demo/bin/python -m pip install --quiet --constraint constraints.txt selenium --editable ".[test,demo]"
	touch $@

test-demo: $(VENV)-demo/installed
	OMP_NUM_THREADS=1 $(VENV)-demo/bin/python -m pytest tests/demo tests/visualization

# A machine with a GPU has the torch that fits it: no environment is made.
gpu-check:
	$(PYTHON) -m scripts.gpu_check $(GPU_CHECK)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every module is imported: the docstrings are those of the code as it is.
docs: $(VENV)/installed
	$(INSTALL) --editable ".[docs]"
	$(BIN)/python -m scripts.api_reference $(OUT)/docs

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-openclip $(VENV)-spconv $(VENV)-scale $(VENV)-demo $(OUT) build *.egg-info
