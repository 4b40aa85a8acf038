# PYTHON is the interpreter of the virtual environment to work in; the default one is made where it is missing.
PYTHON ?= .venv/bin/python
BASE_PYTHON ?= python3

.PHONY: install install-dev demo test test-fast lint docs

.venv/bin/python:
	$(BASE_PYTHON) -m venv .venv

# An install from a folder is always made anew, so that what runs is what the checkout holds.
install: $(PYTHON)
	$(PYTHON) -m pip install .

install-dev: $(PYTHON)
	$(PYTHON) -m pip install --quiet ".[dev]"

demo: install
	$(PYTHON) demo/run_demo.py

# Tests that share what they train run in one worker; those that take longest run first.
IN_GROUPS = -n auto --dist loadgroup --no-loadscope-reorder

# Every decoder on every data set and every backbone; `make test` has a part of them.
.PHONY: test-nightly
test-nightly: install-dev
	$(PYTHON) -m pytest --durations=10 -m nightly $(IN_GROUPS)

test: lint test-fast
	$(PYTHON) -m pytest --durations=10 -m "integration and not nightly" $(IN_GROUPS)

test-fast: install-dev
	$(PYTHON) -m pytest -m "not integration" -n auto

lint: install-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

docs: install-dev
	$(PYTHON) documentation/generate_configuration.py
	$(PYTHON) documentation/generate_decoders.py
	$(PYTHON) documentation/generate_segmentor.py
