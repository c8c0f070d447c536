# What a person types. The build itself is CMake (CMakePresets.json); set-up is deploy/setup.sh.
DENOISED_CACHE ?= $(HOME)/.cache/denoised
export DENOISED_CACHE
# Idle OpenMP threads sleep: where more runs than there are cores, spinning ones only slow the rest.
export OMP_WAIT_POLICY ?= passive
PYTHON := $(DENOISED_CACHE)/venv/bin/python
JOBS ?= $(shell nproc)
TEST_JOBS ?= 2
SOURCES = git ls-files '*.cc' '*.h' '*.cu' '*.cuh'

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests build demo test bench format check-format asan tsan clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what the build needs (Debian packages, LibTorch)
	@deploy/setup.sh --build

setup-tests:
	@deploy/setup.sh --tests

build: setup ## Build everything into build/; programs land in build/bin/
	@cmake --preset dev -DDENOISED_CACHE=$(DENOISED_CACHE) >/dev/null
	@cmake --build --preset dev -j $(JOBS)

demo: ## Set up, build, start the server, draw a video from a prompt into out/
	@deploy/demo.sh

test: setup-tests ## Set up, build, run every test this machine can
	@cmake --preset dev -DDENOISED_CACHE=$(DENOISED_CACHE) >/dev/null
	@cmake --build --preset dev -j $(JOBS)
	@ctest --test-dir build --output-on-failure --no-tests=error -j $(TEST_JOBS)

bench: setup-tests ## Measure against the peers, one JSON line a row (ROWS="A1 C1" to choose)
	@cmake --preset dev -DDENOISED_CACHE=$(DENOISED_CACHE) >/dev/null
	@cmake --build --preset dev -j $(JOBS) --target benches denoised
	@$(PYTHON) tests/bench/bench.py $(ROWS)

asan: setup-tests ## Tests under AddressSanitizer and UndefinedBehaviorSanitizer (unit, contract, fuzz)
	@cmake --preset asan -DDENOISED_CACHE=$(DENOISED_CACHE) >/dev/null
	@cmake --build --preset asan -j $(JOBS)
	@ctest --test-dir build-asan --output-on-failure --no-tests=error -L 'unit|contract|fuzz'

# Not the contract suite: it runs LibTorch's own kernels on two OpenMP threads, whose barriers are in a
# libgomp that ThreadSanitizer does not see, so that it reports races inside libtorch_cpu.so.
tsan: setup-tests ## Core tests under ThreadSanitizer (unit, stress)
	@cmake --preset tsan -DDENOISED_CACHE=$(DENOISED_CACHE) >/dev/null
	@cmake --build --preset tsan -j $(JOBS)
	@ctest --test-dir build-tsan --output-on-failure --no-tests=error -L 'unit|stress'

format: ## Rewrite the C++ sources with clang-format
	@$(SOURCES) | xargs clang-format -i

check-format: ## Fail where clang-format would change something
	@$(SOURCES) | xargs clang-format --dry-run --Werror

clean: ## Remove build folders and out/ (never the shared cache)
	@rm -rf build build-* out
