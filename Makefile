# Everything runs in .venv, made when it is first needed. PY= on the command
# line uses an environment of your own instead: make test PY=python

VENV := .venv
MARK := not slow and not gpu
TESTS := tests
GPU := 0

ifeq ($(GPU),1)
LOCK := requirements-gpu.lock
STAMP := $(VENV)/.installed-gpu
else
LOCK := requirements.lock
STAMP := $(VENV)/.installed
endif

ifeq ($(origin PY),command line)
READY :=
else
PY := $(VENV)/bin/python
READY := $(STAMP)
endif

.PHONY: help env demo test lint clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo   train and evaluate a small SeMOPO on data it collects'
	@echo "make test   the tests (others: MARK=slow, MARK=gpu, TESTS=tests/...)"
	@echo 'make lint   ruff and mypy'
	@echo 'make env    only the environment (GPU=1: with CUDA; PYTHON=...)'
	@echo 'make clean  remove the environment and caches; runs and data stay'

env: $(READY)

# The GPU environment holds the CPU one, hence both stamps.
$(STAMP): requirements.lock $(LOCK)
	@PYTHON='$(PYTHON)' sh tools/install.sh '$(VENV)' $(LOCK)
	@touch $(VENV)/.installed $@

demo: $(READY)
	$(PY) run.py collect --configs demo
	$(PY) run.py train --configs demo

# One process on a GPU: its tests measure the card and share it themselves.
test: $(READY)
	$(PY) -m pytest -n $(if $(filter-out gpu,$(MARK)),2,1) --dist loadfile --no-loadscope-reorder -m '$(MARK)' $(TESTS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m mypy

DEFINITION := requirements.lock tools/requirements.in tools/lock.py
environment.yml: $(DEFINITION) | $(READY)
	$(PY) -m tools.lock

# Only a directory that is an environment, or was about to become one.
clean:
	@if [ -e '$(VENV)/pyvenv.cfg' ] || [ -e '$(VENV)/.incomplete' ]; then \
	  rm -rf '$(VENV)'; fi
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
