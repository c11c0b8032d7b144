# Everything runs in .venv, which the first call makes; a second call starts at once.
# `make sweep` is the main job, `make test` runs all tests; CONTRIBUTING.md says more.

PYTHON ?= python3
BIN := .venv/bin
SWEEP := .venv/.sweep
DEV := .venv/.dev

.PHONY: sweep test lint types bench reference format clean

sweep: $(SWEEP)
	@$(BIN)/jaxcomp sweep --preset quick --out runs/quick

test: $(DEV)
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(DEV)
	@$(BIN)/pyright

bench: $(DEV)
	@for script in $(filter-out %/provenance.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

reference: $(DEV)
	@$(BIN)/python docs/reference.py docs/api
	@echo "open docs/api/index.html"

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv runs build dist

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxcomp needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "making .venv (once)"
	@$(PYTHON) -m venv .venv
	@touch $@

$(SWEEP): pyproject.toml | .venv/.made
	@echo "installing jaxcomp and what a sweep needs (once, a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[sweep]'
	@touch $@

$(DEV): pyproject.toml | .venv/.made
	@echo "installing jaxcomp and what its tests need (once, a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(SWEEP)
