# Everything runs in .venv, which is made on first use and remade when its inputs change.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
DURATION ?= 600
WORKERS ?= 1
# An index of PyTorch's, beside the one that pip uses: with https://download.pytorch.org/whl/cpu, torch
# comes without CUDA's libraries.
TORCH_INDEX_URL ?=
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))
SILENT := yes
ALONE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# So that the tests' many processes compile what they import once, whatever the shell prefers.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: serve test test-all test-other-cpu test-random lint clusters bench soak mutants clean

# Torch is hundreds of megabytes at least: whoever waits for it sees how far it is.
serve bench: SILENT :=
serve: .venv/serve.stamp
	$(BIN)/resnet-serve serve --host $(HOST) --port $(PORT)

# Files side by side. One thread for each of torch's operations: it has threads spin while they
# wait, and processes that each have as many as there are CPUs keep each other from computing.
# Clusters first, with nothing beside them but `lint`: among many others their nodes are late
# enough to be taken for dead. Nor do the others collect them: each process would import Ray.
test: FAST := and not slow
test test-all: .venv/test.stamp
	$(MAKE) --jobs 2 lint clusters FAST='$(FAST)'
	$(PYTEST) --ignore tests/cluster -m 'not cluster $(FAST)'
	$(MAKE) test-other-cpu

# What depends on the precision that the CPU computes in, once more: without bf16 where it has it,
# and with it, emulated, where it has none. The files are named, as most of the others take longer
# to import than this takes. `make test-other-cpu MARKED= MARKED_FILES=` is the whole suite.
MARKED ?= precision and
MARKED_FILES ?= $(shell grep -rl --include='*.py' 'mark[.]precision' tests)
test-other-cpu: .venv/test.stamp
	$(BIN)/python -m tests.support.other_cpu env $(PYTEST) -m '$(MARKED) not slow and not cluster' $(MARKED_FILES)

# No test needs another one before it: in an order of chance, which a failure can repeat by SEED=.
test-random: SEED := $(or $(SEED),$(shell date +%s))
test-random: .venv/test.stamp
	RANDOM_ORDER=$(SEED) $(PYTEST) --ignore tests/cluster -m 'not cluster and not slow'

clusters: .venv/test.stamp
	$(ALONE) -m 'cluster $(FAST)' tests/cluster tests/test_guides.py

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/serve.stamp
	mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks.serving.service --short --output benchmarks/results/short.json

# Ten minutes of good, bad, slow and leaving callers: no growth of memory or files, no wrong answer.
soak: .venv/test.stamp
	mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks.serving.soak --seconds $(DURATION) --workers $(WORKERS) --output benchmarks/results/soak.json --plot benchmarks/results/soak.png

# Whether the unit tests notice that what they test was changed, in copies in the folder `mutants`:
# of all modules of the core, or MODULES='service/engines/device_share.py ...'; AGAIN=1 tries only what survived.
mutants: .venv/mutants.stamp
	$(BIN)/python -m tests.support.mutants $(if $(AGAIN),--again) $(MODULES)

clean:
	rm -rf .venv mutants

.venv/bin/python:
	@$(PYTHON) -c "$$OLD"
	$(PYTHON) -m venv .venv || { rm -rf .venv; false; }

.venv/serve.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(if $(SILENT),,@echo "$$ABOUT")
	$(PIP) $(if $(SILENT),--quiet) torch
	$(PIP) --quiet -e '.[client,cpu,interchange]'
	touch $@

.venv/test.stamp: .venv/serve.stamp
	$(PIP) --quiet -e '.[test]'
	touch $@

.venv/mutants.stamp: .venv/test.stamp
	$(PIP) --quiet -e '.[mutants]'
	touch $@

# Before anything is fetched. What is left of a .venv without pip, as where Debian's python3-venv is
# missing, would be taken for a whole one by the next make.
define OLD
import sys
if sys.version_info < (3, 11):
    sys.exit('$(PYTHON) is Python %d.%d; 3.11 or later is needed; add PYTHON=python3.12, or another that you have' % sys.version_info[:2])
endef
export OLD

define ABOUT
Installing into .venv, once: 1.4 GB with PyTorch for CPUs, 5.5 GB with PyTorch for CUDA, which is
what PyPI has for Linux on x86-64. It takes half a minute to some minutes. For CPUs alone:
  make serve TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
endef
export ABOUT
