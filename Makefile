# make demo   annotate a real data set from nothing: sets up .venv, installs, runs
# make test   run the tests in that environment
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := cplmixvi tests $(wildcard benchmarks)

export OMP_NUM_THREADS ?= 1

.PHONY: venv test lint demo clean check-python

venv: $(STAMP)

check-python:
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' not found: install Python >= 3.11, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version 2>&1) given, Python >= 3.11 needed: name one, as in make PYTHON=python3.12 ..." >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt | check-python
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed: install the venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

test: venv
	$(BIN)/python -m pytest $(ARGS)

lint: venv
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

demo: venv
	$(BIN)/cplmixvi demo --out demo

clean:
	rm -rf $(VENV) demo build dist scvi_log lightning_logs .pytest_cache .ruff_cache .hypothesis .coverage* htmlcov
	find cplmixvi tests -name __pycache__ -type d -prune -exec rm -rf {} +
