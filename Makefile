# Every command a contributor needs.  `make test` and `make demo` work on a machine with only Python 3.11, g++ and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-full lint format build sanitize cuda-compile wheel-check gpu-check bench clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q torch==2.13.0 numpy "setuptools>=77" wheel ninja
	GENIMG_FAST_BUILD=0 $(BIN)/pip install -q --no-build-isolation -e ".[dev]"
	touch $@

build: $(STAMP)      ## compile what changed in csrc/
	$(BIN)/python setup.py -q build_ext --inplace

demo: build          ## train a VAE and a DCGAN on handwritten digits in five minutes
	$(BIN)/genimg-fast demo

# A worker a core, each with one thread: several thread pools in one machine spin against each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test: build          ## the tests that must pass before any push
	$(PYTEST) -m "not slow"

test-full: build     ## everything, the slow tests included
	$(PYTEST)

sanitize: $(STAMP)   ## the tests of the operators under AddressSanitizer and UndefinedBehaviorSanitizer (ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.sanitize

cuda-compile: $(STAMP) ## compile the CUDA kernels for every architecture: registers, shared memory, spills (needs nvcc, no GPU)
	$(BIN)/python -m tests.cuda_on_cpu.cuda_compile

# e.g. make wheel-check PYTHONS="~/py310/bin/python ~/py313/bin/python": interpreters that have some torch >= 2.11
wheel-check: $(STAMP) ## build the wheel and prove it under each of PYTHONS (four minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.wheel_check $(PYTHONS)

# With the python that has a torch for this machine's CUDA, e.g. make gpu-check PYTHON=~/env/bin/python
gpu-check:           ## check and measure everything on this machine's GPU (eight minutes)
	$(PYTHON) -m tests.gpu_check

bench: build         ## measure models, losses and kernels against every installed runtime (ten minutes)
	GENIMG_FAST_BUILD=0 $(BIN)/pip install -q --no-build-isolation -e ".[bench]"
	$(BIN)/genimg-fast bench --suite cpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.h' 'tests/*.cpp' 'tests/*.cu' 'tests/*.c' | xargs -r $(BIN)/clang-format --dry-run --Werror

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/*.h' 'tests/*.cpp' 'tests/*.cu' 'tests/*.c' | xargs -r $(BIN)/clang-format -i

clean:
	rm -rf build dist *.egg-info genimg_fast/*.so
