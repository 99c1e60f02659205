# make demo   the main job on the embedded models: every method on the same prompts, texts compared
# make test   linters, type check and all tests that need no GPU
# make lint   linters and type check only
#
# All three use one virtual environment, made on first use: make VENV=/somewhere/else PYTHON=python3.12 test

VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2

RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check --quiet install --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint

demo: $(INSTALLED)
	$(VENV)/bin/specdec compare

# Kernels are interpreted in a process of their own: Triton decides for good when they are imported.
test: lint
	$(RUN) pytest -n $(JOBS)
	TRITON_INTERPRET=1 $(RUN) pytest -n $(JOBS) tests/kernels/interpreted

lint: $(INSTALLED)
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy

# torch first and by its pin: asked for without one, pip could take a newer build and gigabytes of CUDA with it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) --editable ".[test]"
	touch $@
