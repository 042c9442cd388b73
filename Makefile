# make alone prints what there is. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
PIP    := python -m pip --disable-pip-version-check
JOBS   ?= 2

# Tests run side by side, so each gets one thread.
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --doctest-modules

.DEFAULT_GOAL := help
.PHONY: help demo test test-all mutants lint format bench docs clean

help:
	@echo 'make demo       train a small network on real digits, analyse every layer, write a report (minutes)'
	@echo 'make test       the test suite without its slow part'
	@echo 'make test-all   the whole test suite'
	@echo 'make mutants    a hundred small faults put into the code: how many do the tests find? (an hour)'
	@echo 'make lint       ruff (rules and format) and mypy'
	@echo 'make format     let ruff put the code into shape'
	@echo 'make bench      compare with other libraries, and our own figures (hours; ARGS=... for parts of it)'
	@echo 'make docs       the notebooks from their scripts, and the documentation as a site in site/ (a minute)'
	@echo 'make clean      remove the environment, caches and outputs'
	@echo
	@echo 'The first call makes $(VENV) and installs into it. PYTHON=... picks the interpreter (3.10 or newer).'

demo: $(VENV)/.demo
	$(BIN)/layerhess demo

test: $(VENV)/.dev
	$(PYTEST) -m 'not slow' --durations=10 layerhess tests

test-all: $(VENV)/.dev
	$(PYTEST) --durations=25 layerhess tests

mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants --number 100 --seed 0 --jobs $(JOBS) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH)/.peers
	$(BENCH)/bin/python -m benchmarks.run $(ARGS)
ifeq ($(strip $(ARGS)),)
	$(BENCH)/bin/python -m benchmarks.figures
endif

docs: $(VENV)/.docs
	$(BIN)/python examples/make_notebook.py
	OMP_NUM_THREADS=1 $(BIN)/python docs/make_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Open site/index.html; for its search: $(BIN)/python -m http.server -d site'

clean:
	rm -rf $(VENV) $(BENCH) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch first and on its own: every later install then finds it there and leaves it alone.
$(VENV)/.torch $(BENCH)/.torch: %/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'layerhess needs Python 3.10 or newer; choose one with: make PYTHON=/path/to/python3'; exit 1; }
	$(PYTHON) -m venv $*
	@echo 'Installing PyTorch; this is a large download.'
	$*/bin/$(PIP) install -c constraints.txt torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo 'Installing layerhess and what its demo needs.'
	$(BIN)/$(PIP) install -q -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	@echo 'Installing layerhess and what its documentation needs.'
	$(BIN)/$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo 'Installing layerhess and what its tests and linters need.'
	$(BIN)/$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

# The peers have an environment of their own; without --no-deps one of them would bring another PyTorch.
$(BENCH)/.peers: $(BENCH)/.torch benchmarks/requirements.txt pyproject.toml
	@echo 'Installing layerhess and the libraries it is compared with.'
	$(BENCH)/bin/$(PIP) install -q --no-deps -r benchmarks/requirements.txt
	$(BENCH)/bin/$(PIP) install -q -c constraints.txt -e .
	@touch $@
