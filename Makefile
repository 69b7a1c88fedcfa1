# Every target is a thin call of a command that also works alone, inside the virtual environment.
PYTHON ?= python3.11
VENV ?= .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.installed
# Programs that check deploy/ pin what the service pins otherwise.
DEPLOY_VENV := .venv-deploy
DEPLOY_SETUP := $(DEPLOY_VENV)/.installed

.PHONY: help setup train models serve test deploy-tools check loadtest bench bench-gpu image manifests clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

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

$(DEPLOY_SETUP): deploy/requirements.txt $(SETUP)
	@$(PYTHON) -m venv $(DEPLOY_VENV)
	@$(DEPLOY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

train: $(SETUP) ## train every model and pack its archive into model_store (ARGS=--force replaces other weights)
	@$(PY) -m training train
	@$(PY) -m training pack $(ARGS)

models: $(SETUP) ## train the models that model_store lacks, and pack what is stale
	@$(PY) -m training train --missing
	@$(PY) -m training pack --stale

serve: models ## bring model_store up to date, then serve until Ctrl-C
	@$(PY) -m server

test: $(SETUP) $(DEPLOY_SETUP) ## run every test
	@$(PY) -m pytest

deploy-tools: ## install what tests of images, rules and the benchmark need besides, on Debian, as root
	apt-get update --quiet=2
	apt-get install --quiet=2 --yes --no-install-recommends debootstrap podman prometheus runc wrk

check: $(SETUP) ## check format, lint and types
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

loadtest: models ## load the server with Locust for a minute and judge it (starts one if none answers)
	@$(PY) -m loadtest run

bench: models ## measure this service beside plain TorchServe, with wrk (10 minutes)
	@$(PY) -m bench

bench-gpu: models ## measure the forward on a GPU beside a bare CUDA graph
	@$(PY) -m bench.gpu

image: models ## build the image of the service (ARGS="--torch cu130" for GPUs)
	@$(PY) -m deploy.image $(ARGS)

manifests: $(SETUP) $(DEPLOY_SETUP) ## render every overlay of deploy/kubernetes
	@$(PY) -m deploy.manifests

clean: ## remove the environment, caches, archives and logs
	rm -rf $(VENV) $(DEPLOY_VENV) artifacts .cache .mypy_cache .pytest_cache .ruff_cache logs model_store/*.mar
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
