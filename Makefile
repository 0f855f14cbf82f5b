# The commands of the project; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
PARALLEL := -n logical --dist loadfile

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/installed  ## install, and merge the quickstart recipe (half a minute after the installation)
	$(BIN)/mega-hf merge recipes/quickstart.yaml

test: .venv/installed-dev  ## install, and run the test suite
	$(BIN)/python -m pytest $(PARALLEL)

long: .venv/installed-dev  ## run the long tests: several processes at a time, many kills
	$(BIN)/python -m pytest -m long $(PARALLEL)

real: .venv/installed-dev  ## run the tests on real CIFAR-10, if it is in ../shared
	$(BIN)/python -m pytest -m real

soak: .venv/installed-dev  ## run the tests of faults in their long form and print a table (about 40 minutes)
	$(BIN)/python -m tests.tools.soak

fix: .venv/installed-dev  ## format, and fix what ruff can fix
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

lint: .venv/installed-dev  ## check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed-dev  ## check types
	$(BIN)/mypy

check: lint types  ## format, lint, types and the fast tests, under a minute
	$(BIN)/python -m pytest -m "not real and not long and not slow" $(PARALLEL)

clean:  ## remove everything that was built; runs are kept
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
