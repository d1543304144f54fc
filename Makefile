# `make generate` and `make test` do all their set-up in .venv: see scripts/setup_env.sh.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= def read_lines(path):
override PROMPT := $(value PROMPT)# text, not a make expression: a $ in it is a $

SOURCES := setup.py pyproject.toml CMakeLists.txt $(wildcard build_support/*.py) $(shell find csrc -type f)

.PHONY: generate test test-kernels sanitize lint format check-cuda check-sdist check-symbols clean

generate: $(VENV)/installed
	@$(BIN)/persimmon-ext generate "$$PROMPT" $(ARGS)
export PROMPT

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(ARGS)

# The CUDA kernels under the CPU emulator, against a float64 reference: optimised, then with sanitizers.
test-kernels: $(VENV)/installed
	for sanitize in none address thread; do \
	  folder=build/cuda_kernels-$$sanitize && \
	  $(BIN)/cmake -G Ninja -S tests/cuda_kernels -B $$folder -DKERNEL_SANITIZE=$$sanitize \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) && \
	  $(BIN)/cmake --build $$folder && \
	  $(BIN)/ctest --test-dir $$folder --output-on-failure --parallel $(shell nproc) || exit 1; \
	done

# The CPU kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(VENV)/installed-test
	PYTHON=$(BIN)/python scripts/check_sanitizers.sh $(ARGS)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy
	scripts/check_torch_free.sh

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# Compiles every CUDA kernel with nvcc for all targets, fails on spills and stack frames; and the kernels' tests, for one.
check-cuda:
	scripts/check_kernels.sh
	scripts/test_kernels_on_gpu.sh --compile 90a

$(VENV)/installed: scripts/setup_env.sh constraints.txt $(SOURCES)
	PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) ""
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) test
	@touch $@

$(VENV)/installed-lint: $(VENV)/installed-test
	PYTHON=$(PYTHON) scripts/setup_env.sh $(VENV) test,lint
	@touch $@

# Builds the sdist, installs from it in an empty folder, and uses what was installed.
check-sdist: $(VENV)/installed-test
	PYTHON=$(BIN)/python scripts/check_sdist.sh

# No code for one instruction set may be reachable on a machine without it.
check-symbols: $(VENV)/installed
	scripts/check_kernel_symbols.sh

clean:
	rm -rf build dist $(VENV) *.egg-info persimmon_ext/*.so
