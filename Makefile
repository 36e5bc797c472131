# make demo   annotate a real data set from nothing: sets up .venv, installs, runs
# make test   run the tests in that environment, in two processes; WORKERS=0 for one that a debugger can enter
# make lint   look at the style; make types   check the types
# make docs   build the documentation in docs/_build/html, without a network and without running notebooks
# make tutorials   run the notebooks and save their outputs; ARGS=tutorials/01_quickstart.ipynb for one
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOC_STAMP := $(VENV)/.installed-doc
SOURCES := cplmixvi tests $(wildcard benchmarks docs tutorials)

WORKERS ?= 2

export OMP_NUM_THREADS ?= 1

.PHONY: venv test lint types demo docs tutorials clean check-python

venv: $(STAMP)

check-python:
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' not found: install Python >= 3.11, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version 2>&1) given, Python >= 3.11 needed: name one, as in make PYTHON=python3.12 ..." >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: install the venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

test: venv
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: venv
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "mypy>=1.15"
	$(BIN)/mypy

demo: venv
	$(BIN)/cplmixvi demo --out demo

$(DOC_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[doc,tutorial]"
	@touch $@

docs: $(DOC_STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

tutorials: $(DOC_STAMP)
	$(BIN)/python tutorials/execute.py $(ARGS)

clean:
	rm -rf $(VENV) demo build docs/_build docs/generated docs/tutorials dist scvi_log lightning_logs .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov
	find cplmixvi tests -name __pycache__ -type d -prune -exec rm -rf {} +
