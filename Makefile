# Every target is a thin call of a command that also works alone, inside the virtual environment.
PYTHON ?= python3.11
VENV ?= .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.installed

.PHONY: help setup train serve test check loadtest bench bench-gpu clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(SETUP) ## install pinned dependencies into .venv, if they changed

# torch alone and first: asked for by another package, pip may take a newer build, with gigabytes of
# CUDA libraries.
$(SETUP): requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; PYTHON=... names a Python 3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and "error: $(PYTHON) is Python %d.%d; PYTHON=... names a Python 3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

train: $(SETUP) ## train every model and build its archive in model_store
	@$(PY) -m training all

serve: $(SETUP) ## train what is missing, then serve until Ctrl-C
	@$(PY) -m training all --missing
	@$(PY) -m handler

test: $(SETUP) ## run every test
	@$(PY) -m pytest

check: $(SETUP) ## check format, lint and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

loadtest: $(SETUP) ## load the server with Locust for a minute and judge it (starts one if none answers)
	@$(PY) -m training all --missing
	@$(PY) -m loadtest run

bench: $(SETUP) ## measure this service beside plain TorchServe, with wrk (10 minutes)
	@$(PY) -m training all --missing
	@$(PY) -m loadtest.bench

bench-gpu: $(SETUP) ## measure the forward on a GPU beside a bare CUDA graph
	@$(PY) -m tests.gpu.bench

clean: ## remove the environment, caches, archives and logs
	rm -rf $(VENV) artifacts .cache .mypy_cache .pytest_cache .ruff_cache logs model_store/*.mar
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
