# Everything runs in .venv, which the first call makes; a second call starts at once.
# `make sweep` is the main job, `make test` runs all tests; CONTRIBUTING.md says more.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
COMMANDS := $(VENV)/.commands
DEV := $(VENV)/.dev
DOCS := $(VENV)/.docs
# Not compiled to bytecode: that takes longer than all else of an installation, for modules of which
# Python compiles the few that are imported, when they are.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
SITE := build/docs
SPHINX := $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs .
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Tests start many processes, and each would compile the same modules where this is set.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: sweep test notebooks docs docs-executed lint types bench links format dist clean \
	check-all check-slow check-flags check-lowest check-peers

sweep: $(COMMANDS)
	@$(BIN)/jaxcomp sweep --preset quick --out runs/quick

test: $(DEV)
	@$(PYTEST)

# They take half a minute each; `make check-slow` runs them too.
notebooks: $(DEV)
	@$(BIN)/python -m pytest -m "slow or not slow" tests/test_notebooks.py

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV)
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(DEV)
	@for script in $(filter-out %/provenance.py %/fuzz_files.py %/nncodec_peer.py %/large_files.py %/torch_peers.py %/language_model.py %/trained.py %/weighting_problems.py %/predicted_rise.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# The site, from pages and docstrings; links that lead nowhere and other warnings are errors.
docs: $(DOCS)
	@$(SPHINX) $(SITE)
	@echo "open $(SITE)/index.html"

# The same with notebooks that were run: minutes.
docs-executed: $(DOCS)
	@JAXCOMP_EXECUTE_NOTEBOOKS=1 $(SPHINX) $(SITE)-executed
	@echo "open $(SITE)-executed/index.html"

links: $(DEV)
	@$(BIN)/python docs/links.py

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# What takes too long for every change; by hand, before a release.
check-all: check-slow check-flags check-lowest check-peers docs-executed

# Tests that `make test` leaves out since cheaper ones find the same faults, notebooks among them, and
# programs that once waited for ever, 20 times each.
check-slow: $(DEV)
	@$(PYTEST) -m slow
	@$(BIN)/python benchmarks/soak_linear_algebra.py --runs 20

# The suite compiles with flags that save its time; users' programs are optimised.
check-flags: $(DEV)
	@XLA_FLAGS= $(PYTEST)

# The lowest versions that pyproject.toml allows.
check-lowest: $(DEV)
	@$(BIN)/python $(INSTALL) uv
	@$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(VENV)/lowest
	@$(BIN)/uv pip install --quiet --python $(VENV)/lowest --resolution lowest-direct -e '.[dev]'
	@$(VENV)/lowest/bin/python -m pytest --numprocesses auto --dist loadfile

# Other libraries, in their versions of today, on a small problem.
check-peers: $(DEV)
	@$(BIN)/python $(INSTALL) -e '.[bench]'
	@$(BIN)/python benchmarks/optimal_quantizers.py --num-points 100000 --num-clusters 16

# What a release uploads, checked; the wheel then runs alone on Python 3.11 and on the newest Python here.
dist: | $(VENV)/.made
	@rm -rf dist
	@$(BIN)/python $(INSTALL) build twine
	@$(BIN)/python -m build --outdir dist .
	@$(BIN)/python -m twine check --strict dist/*
	@.ci/try-wheel dist/*.whl

clean:
	rm -rf .venv .venv-* runs build dist

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxcomp needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "making $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# One environment for all commands of the README.
$(COMMANDS): pyproject.toml | $(VENV)/.made
	@echo "installing jaxcomp and what its commands need (once, a minute or two)"
	@$(BIN)/python $(INSTALL) -e '.[sweep,coding]'
	@touch $@

$(DEV): pyproject.toml | $(VENV)/.made
	@echo "installing jaxcomp and what its tests need (once, a minute or two)"
	@$(BIN)/python $(INSTALL) -e '.[dev]'
	@touch $@ $(COMMANDS)

$(DOCS): $(DEV)
	@echo "installing what the documentation needs (once)"
	@$(BIN)/python $(INSTALL) -e '.[docs]'
	@touch $@
