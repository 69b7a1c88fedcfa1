# Every target is a thin call of a command that also works alone, inside the virtual environment.
PYTHON ?= python3.11
VENV ?= .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.installed
# Programs that check deploy/ pin what the service pins otherwise.
DEPLOY_VENV := .venv-deploy
DEPLOY_SETUP := $(DEPLOY_VENV)/.installed
# So do the clients that tests run.
CLIENTS_VENV := .venv-clients
CLIENTS_SETUP := $(CLIENTS_VENV)/.installed
# And servers of others, which the benchmark measures.
PEERS := web litserve bentoml ray mlserver pytriton
PEERS_SETUP := $(PEERS:%=.cache/peers/%/.installed)

LOCK := $(PY) -m uv pip compile --quiet
# Python compiles what it imports. To compile all 13,000 files took 77 s of a first start.
export PIP_COMPILE := 0

.PHONY: help setup lock audit train models serve unit test test-cluster test-reliability test-tools deploy-tools check loadtest bench bench-peers bench-gpu image manifests clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(SETUP) ## install what requirements/ locks into .venv, if it changed

$(SETUP): requirements/install requirements/torch.txt requirements/cuda.txt requirements/dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; PYTHON=... names a Python 3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and "error: $(PYTHON) is Python %d.%d; PYTHON=... names a Python 3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	requirements/install $(PY) torch dev
	@touch $@

$(DEPLOY_SETUP): requirements/deploy.txt $(SETUP)
	@$(PYTHON) -m venv $(DEPLOY_VENV)
	@requirements/install $(DEPLOY_VENV)/bin/python deploy
	@touch $@

$(CLIENTS_SETUP): requirements/clients.txt $(SETUP)
	@$(PYTHON) -m venv $(CLIENTS_VENV)
	@requirements/install $(CLIENTS_VENV)/bin/python clients
	@touch $@

# One that this system cannot install is left out.
.cache/peers/%/.installed: requirements/peers-%.txt $(SETUP)
	@$(PYTHON) -m venv $(@D)
	@requirements/install $(@D)/bin/python peers-$* && touch $@ || echo "$* is left out" >&2

# With what is installed, as the old locks may no longer be installable. cuda.txt alone is made without
# [tool.uv], which has what torch's CPU build needs.
lock: $(if $(wildcard $(PY)),,$(SETUP)) ## write requirements/*.txt from pyproject.toml (ARGS=--upgrade for all that it needs)
	@$(LOCK) $(ARGS) pyproject.toml --group dev --output-file requirements/dev.txt
	@$(LOCK) pyproject.toml --constraint requirements/dev.txt --output-file requirements/serving.txt
	@$(LOCK) --group loadtest --constraint requirements/dev.txt --output-file requirements/loadtest.txt
	@$(LOCK) --group training --constraint requirements/dev.txt --output-file requirements/training.txt
	@$(LOCK) $(ARGS) --no-config --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-package torch \
		--constraint requirements/dev.txt requirements/torch.txt --output-file requirements/cuda.txt
	@$(LOCK) $(ARGS) --group deploy --output-file requirements/deploy.txt
	@$(LOCK) $(ARGS) --group clients --output-file requirements/clients.txt
	@for peer in $(filter-out pytriton,$(PEERS)); do \
		$(LOCK) $(ARGS) --group peers-$$peer --output-file requirements/peers-$$peer.txt || exit; done
	@$(LOCK) $(ARGS) --python-platform x86_64-manylinux_2_35 \
		--group peers-pytriton --output-file requirements/peers-pytriton.txt

audit: $(SETUP) ## look every locked package up among known vulnerabilities
	@$(PY) -m pip_audit --strict --disable-pip --require-hashes --requirement requirements/torch.txt \
		--requirement requirements/cuda.txt --requirement requirements/dev.txt
	@$(PY) -m pip_audit --strict --disable-pip --require-hashes --requirement requirements/deploy.txt
	@$(PY) -m pip_audit --strict --disable-pip --require-hashes --requirement requirements/clients.txt

train: $(SETUP) ## train every model and pack its archive into model_store (ARGS=--force replaces other weights)
	@$(PY) -m training train
	@$(PY) -m training pack $(ARGS)

models: $(SETUP) ## train the models that model_store lacks, and pack what is stale
	@$(PY) -m training train --missing --quick
	@$(PY) -m training pack --stale

serve: models ## bring model_store up to date, then serve until Ctrl-C
	@$(PY) -m server

unit: $(SETUP) ## run the tests that start no server (seconds)
	@$(PY) -m pytest tests/unit

# Not on whatever cluster the developer last worked with: tests cordon and drain its nodes.
test: $(SETUP) test-tools ## run every test, and measure coverage
	@env -u KUBECONFIG $(PY) -m pytest --cov

test-cluster: $(SETUP) $(DEPLOY_SETUP) ## run the manifests on the cluster of KUBECONFIG, or on a node of KUBERNETES_BINARIES
	@$(PY) -m pytest tests/cluster

test-reliability: $(SETUP) ## measure faults, overload and hostile input at length, and write tests/reliability/README.md (half an hour)
	@rm -rf artifacts/reliability/long
	@RELIABILITY=long $(PY) -m pytest tests/reliability $(ARGS)
	@$(PY) -m tests.reliability.report

test-tools: $(DEPLOY_SETUP) $(CLIENTS_SETUP) ## install what the tests run besides the service into environments of their own

deploy-tools: ## install what tests of images, rules, the cluster, the page, faults and the benchmark need besides, on Debian, as root
	apt-get update --quiet=2
	apt-get install --quiet=2 --yes --no-install-recommends chromium debootstrap gcc libc6-dev podman prometheus runc wrk \
		busybox-static conntrack containerd containernetworking-plugins etcd-server iproute2 ipset iptables \
		nftables openssl

check: $(SETUP) ## check format, lint, types and who imports whom
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-cache --no-logo

loadtest: models ## load the server with Locust for a minute and judge it (starts one if none answers)
	@$(PY) -m loadtest run

bench: models ## measure this service beside plain TorchServe, with wrk (10 minutes)
	@$(PY) -m bench

bench-peers: models $(PEERS_SETUP) ## measure this service beside other servers of the same network (an hour; goes on where it ended)
	@$(PY) -m bench.peers $(ARGS)

bench-gpu: models ## measure the forward on a GPU beside a bare CUDA graph
	@$(PY) -m bench.gpu

image: models ## build the image of the service (ARGS="--torch cu130" for GPUs)
	@$(PY) -m deploy.image $(ARGS)

manifests: $(SETUP) $(DEPLOY_SETUP) ## render every overlay of deploy/kubernetes
	@$(PY) -m deploy.manifests

clean: ## remove the environment, caches, archives and logs
	rm -rf $(VENV) $(DEPLOY_VENV) $(CLIENTS_VENV) artifacts .cache .coverage* .mypy_cache .pytest_cache .ruff_cache logs model_store/*.mar
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
