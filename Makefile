# `make` lists the targets. Options are given as VAR=value.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CONFIG ?= pipelines/configs/telco.yaml
PLATFORM ?= embedded
IMAGE ?= $(shell $(BIN)/python docker/images.py name pipeline)
FAULT ?= errors
CHECKS ?= on
CLUSTER ?= kind
KUBECTL ?= kubectl
export SERIN_HOME ?= $(CURDIR)/.serin
export KIND_CLUSTER ?= serin
export MINIKUBE_PROFILE ?= serin

BIN := .venv/bin
UV := $(BIN)/uv

.PHONY: help setup run cluster-run status down drill compile doctor cluster-up cluster-status cluster-down images load install lint test cluster-test dist clean bench-pipeline bench-rollout bench-judge bench-predictor bench-controller bench-kfp bench-data

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf "  make %-16s %s\n" bench-NAME "Benchmark: pipeline, rollout, judge, predictor, controller, kfp or data"
	@echo
	@echo "  CONFIG=file   another data set        TRAFFIC=n|none   requests per second during a rollout"
	@echo "  PLATFORM=embedded|kserve|kserve:NAMESPACE   where to release          KFP_ENDPOINT=url   for cluster-run"
	@echo "  FAULT=errors|latency|scores|crash|slowstart   CHECKS=on|off   SERVICE=name   for drill"
	@echo "  SERIN_DATA=file   the table to use    SERIN_HOME=folder   the platform's state (.serin)"
	@echo "  SERIN_RUNS=folder   what runs leave behind (runs)"
	@echo "  SERIN_PORT=n   the gateway's port (8080)"

setup: .venv/.ready ## Install everything, pinned and checked by hash, into .venv

.venv/.ready: requirements.lock requirements-uv.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "serin needs Python 3.11 to 3.13; choose one with PYTHON=python3.12 (found: $$("$(PYTHON)" --version))" >&2; exit 2; }
	@echo "Installing into .venv, pinned and checked by hash; the first time it takes a minute or two" >&2
	@[ -x $(BIN)/pip ] || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(UV) pip install -q --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock
	@$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

.venv/.ready-dev: .venv/.ready requirements-dev.lock
	@$(UV) pip install -q --python $(BIN)/python --require-hashes -r requirements-dev.lock
	@touch $@

run: setup ## Run the KFP pipeline, release the model as a canary, write a report
	@$(BIN)/python -m pipelines.run --config "$(CONFIG)" --platform "$(PLATFORM)" $(if $(TRAFFIC),--traffic "$(TRAFFIC)")

cluster-run: setup ## The same on a cluster: the pipeline on KFP, the canary on KServe
	@$(BIN)/python -m pipelines.cluster --config "$(CONFIG)" --platform "$(patsubst embedded,kserve,$(PLATFORM))" \
	  --image "$(IMAGE)" $(if $(TRAFFIC),--traffic "$(TRAFFIC)")

status: setup ## Show the service and all rollouts
	@$(BIN)/serin status

down: setup ## Stop everything; models and rollouts stay on disk
	@$(BIN)/serin down

drill: setup ## Release a deliberately bad candidate and watch it roll back
	@$(BIN)/serin drill "$(FAULT)" $(if $(filter on off,$(CHECKS)),,$(error CHECKS is on or off, not $(CHECKS)))$(if $(filter off,$(CHECKS)),--no-checks) $(if $(SERVICE),--service "$(SERVICE)")

compile: setup ## Write pipelines/compiled/train-and-release.yaml
	@$(BIN)/python -m pipelines.compile

doctor: setup ## Show what the current cluster is missing for releases, with fixes
	@$(BIN)/serin doctor $(if $(filter kserve%,$(PLATFORM)),--platform "$(PLATFORM)")

cluster-up: ## Create a cluster with Knative, KServe and serin (CLUSTER=kind|minikube)
	@cluster/cluster.sh up "$(CLUSTER)"
	@$(MAKE) images load install doctor

cluster-status: ## Show what is running on the current cluster
	@cluster/cluster.sh status

cluster-down: ## Delete the cluster created by cluster-up
	@cluster/cluster.sh down "$(CLUSTER)"

images: ## Build the three images, tagged by their content
	@"$(PYTHON)" docker/images.py build

load: ## Load the images onto the cluster (CLUSTER=kind|minikube|single-node)
	@"$(PYTHON)" docker/images.py load "$(CLUSTER)"

install: ## Install serin on the current cluster, with these images
	@[ -d "manifests/overlays/$(CLUSTER)" ] || { echo "CLUSTER is kind, minikube or single-node, not $(CLUSTER)." >&2; exit 2; }
	@$(KUBECTL) kustomize "manifests/overlays/$(CLUSTER)" | "$(PYTHON)" docker/images.py fill \
	  | $(KUBECTL) apply --server-side --force-conflicts -f -
	@$(KUBECTL) -n serin-system rollout status deployment/serin-controller --timeout=120s

lint: .venv/.ready-dev ## Check style, types, import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

test: .venv/.ready-dev ## Run lint and the whole test suite
	@$(MAKE) lint
	@$(BIN)/pytest -n 2 --dist loadfile

cluster-test: .venv/.ready-dev ## Run full rollouts and fault injection on the current cluster
	@$(BIN)/pytest -v -s --timeout 900 tests/cluster

bench-pipeline bench-rollout bench-judge bench-predictor bench-controller bench-kfp bench-data: bench-%: .venv/.ready-dev
	@$(BIN)/python -m benchmarks.$*

dist: .venv/.ready-dev ## Build the wheel and its SBOM (CycloneDX) into dist/
	@rm -rf dist
	@$(UV) build -q --wheel --no-build-isolation --python $(BIN)/python
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible -o dist/serin.cdx.json requirements.lock

clean: ## Stop everything and delete .venv, .serin, .cache and runs
	@[ ! -x $(BIN)/serin ] || $(BIN)/serin down
	@rm -rf .venv .serin .cache runs
