# A fresh machine needs git, make and a Python with venv; the targets make .venv themselves.

# requirements.lock holds hashes of wheels, so it is for one Python on one platform.
LOCKED := CPython 3.11 Linux x86_64
PROBE := import platform as p; version = ".".join(p.python_version_tuple()[:2]); \
	print(p.python_implementation(), version, p.system(), p.machine())

# The first that starts: python3.11, else python3.
PYTHON := $(shell for p in python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
THIS := $(shell $(or $(PYTHON),false) -c '$(PROBE)')

BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-full test-gpu check bench bench-data bench-gpu docs lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --------------------------------------------------------------------------------- the environment

ifeq ($(THIS),$(LOCKED))

# Touched last, so an install that failed half-way is never taken for ready.
READY := .venv/.installed

$(READY): requirements.lock pyproject.toml
	@echo "Installing the locked packages into .venv (about 7 GB, a few minutes) ..."
	@test -e $@ || $(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $@

else

# Elsewhere .venv is made by hand, and used as it is.
READY := $(BIN)/orchestrator

$(READY):
	@echo "requirements.lock is for CPython 3.11 on Linux x86_64; this is $(or $(THIS),a machine without python3)." >&2
	@echo "Make the environment without it, then run make again:" >&2
	@echo "  python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'" >&2
	@exit 1

endif

# --------------------------------------------------------------------------------------- the targets

quickstart: $(READY) ## Train the small example, end to end
	$(BIN)/orchestrator train configs/quickstart.yaml

test: $(READY) ## Run the tests, but not the slow ones
	$(BIN)/pytest -m "not slow"

test-full: $(READY) ## Run all tests
	$(BIN)/pytest

test-gpu: $(READY) ## Run the tests that need a CUDA GPU
	$(BIN)/pytest tests/gpu

check: $(READY) ## Check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

RUN_EACH = @for script in $(1); do echo "==> $$script" && $(BIN)/python $$script || exit 1; done

bench: $(READY) ## Run every benchmark
	$(call RUN_EACH,benchmarks/[!_]*.py)

bench-data: $(READY) ## Run the benchmarks of the data plane
	$(call RUN_EACH,benchmarks/data_*.py benchmarks/decode.py)

bench-gpu: $(READY) ## Run the benchmark that needs a CUDA GPU
	$(call RUN_EACH,benchmarks/gpu_step.py)

docs: $(READY) ## Write docs/config.md from the configuration schema
	$(BIN)/orchestrator schema --markdown > docs/config.md.new
	mv docs/config.md.new docs/config.md

lock: ## Write requirements.lock again, after a change of dependencies
	$(PYTHON) tools/lock.py

clean: ## Remove caches and build products; .venv and runs stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
