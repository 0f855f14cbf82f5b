# Commands of the house. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
BOTH := -n logical --dist loadfile  # on all cores: most tests keep one busy

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/installed  ## set everything up and run the main job: half a minute after the installation
	$(BIN)/mega-hf merge recipes/quickstart.yaml

test: .venv/installed-dev  ## set everything up and run the suite
	$(BIN)/python -m pytest $(BOTH)

long: .venv/installed-dev  ## run the tests that start several processes at a time, or kill many
	$(BIN)/python -m pytest -m long $(BOTH)

real: .venv/installed-dev  ## run the tests on real CIFAR-10, where it lies in ../shared
	$(BIN)/python -m pytest -m real

soak: .venv/installed-dev  ## the tests of faults in their long form: about 40 minutes; prints a table
	$(BIN)/python -m tests.tools.soak

fix: .venv/installed-dev  ## format, and mend what can be mended
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

lint: .venv/installed-dev  ## check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed-dev  ## check types
	$(BIN)/mypy

check: lint types  ## format, lint, types and the fast tests, under a minute
	$(BIN)/python -m pytest -m "not real and not long and not slow" $(BOTH)

clean:  ## remove what was built; runs stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected: Python 3.11 or later; got: $$($(PYTHON) --version); hint: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@ .venv/installed

.PHONY: help quickstart test long real soak fix lint types check clean
