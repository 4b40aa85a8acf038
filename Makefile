# PYTHON is the interpreter of the virtual environment to work in; the default one is made where it is missing.
PYTHON ?= .venv/bin/python
BASE_PYTHON ?= python3
# The virtual environment with the oldest versions that pyproject.toml allows, made anew when that file changes.
OLDEST ?= .venv-oldest
# Old releases without a wheel for this Python are passed over instead of being compiled.
UV_INSTALL = $(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --only-binary numpy,scipy,safetensors

.PHONY: install install-dev demo test test-fast test-nightly test-oldest lint docs

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
test-nightly: install-dev
	$(PYTHON) -m pytest --durations=10 -m nightly $(IN_GROUPS)

test: lint test-fast
	$(PYTHON) -m pytest --durations=10 -m "integration and not nightly" $(IN_GROUPS)

test-fast: install-dev
	$(PYTHON) -m pytest -m "not integration" -n auto

# uv resolves each dependency that pyproject.toml names to its lower bound; pip has no such option.
$(OLDEST)/installed: pyproject.toml
	$(BASE_PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(UV_INSTALL) --resolution lowest-direct .
	touch $@

test-oldest: $(OLDEST)/installed
	$(UV_INSTALL) --reinstall-package nnunet-vit ".[dev]"
	NNUNET_VIT_ON_LOWER_BOUNDS=1 $(OLDEST)/bin/python -m pytest -m "not integration" -n auto

lint: install-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

docs: install-dev
	$(PYTHON) documentation/generate_configuration.py
	$(PYTHON) documentation/generate_decoders.py
	$(PYTHON) documentation/generate_studies.py
	$(PYTHON) documentation/generate_segmentor.py
