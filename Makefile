# Everything is installed into $(VENV); nothing outside the checkout is touched.
#
#   make demo PYTHON=python3.12     another interpreter
#   make demo TORCH=2.8.0           another build of PyTorch

PYTHON ?= python3
VENV   ?= .venv
# One known build, so that results repeat. The number lives in constraints.txt.
TORCH  ?= $(shell sed -n 's/^torch==//p' constraints.txt)

# Processes that run the tests.
JOBS   ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIN := $(VENV)/constraints.txt

# Stamp files: each says "this was installed", and is older than its sources when that no longer holds.
BASE := $(VENV)/.base-torch-$(TORCH)
DEV  := $(VENV)/.dev-torch-$(TORCH)

CODE := $(wildcard src training benchmarks integrations tests)

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage test-slow lint format docs bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(BASE) ## install the package and what it needs

demo: $(BASE) ## draw pictures with and without pruning, write demo.png and print a table
	$(BIN)/stepvar demo

test: $(DEV) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

coverage: $(DEV) ## run the tests and see which lines they reach; takes three times as long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term

test-slow: $(DEV) ## run the long tests
	$(BIN)/python -m pytest -m slow

lint: $(DEV) ## check style and types
	$(BIN)/ruff check $(CODE) examples
	$(BIN)/ruff format --check $(CODE) examples
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports

format: $(DEV) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix $(CODE) examples
	$(BIN)/ruff format $(CODE) examples

docs: $(DEV) ## build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: $(DEV) ## run the benchmarks
	$(BIN)/python -m benchmarks

clean: ## remove everything that was made here, the installation too
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed, this is " + sys.version if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# PyTorch goes first and by its exact version: it decides which other packages come along.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	rm -f $(VENV)/.base-torch-* $(VENV)/.dev-torch-*
	sed 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $(PIN)
	$(PIP) install -c $(PIN) 'torch==$(TORCH)'
	$(PIP) install -c $(PIN) -e .
	touch $@

$(DEV): $(BASE)
	$(PIP) install -c $(PIN) -e '.[dev,docs]'
	touch $@
