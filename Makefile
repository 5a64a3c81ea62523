# What you can do here; `make help` lists it. Three commands matter: `make demo`, `make check` without root, and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := $(CURDIR)/.cache/venv
BIN := $(VENV)/bin
export PYTHONPATH := $(CURDIR)/operator:$(CURDIR)/tools:$(CURDIR)
export PYTHONDONTWRITEBYTECODE := 1
PYTEST := $(BIN)/python -m pytest
# How the tests find the sandbox and its Helm.
WITH_SANDBOX = MODELROLLOUT_KUBECONFIG=$$($(BIN)/python -m sandbox kubeconfig) HELM=$$($(BIN)/python -m sandbox exec -- which helm)
PACKAGES := -p modelrollout -p sandbox -p demo -p calibrate -p chaos -p gitops -p bench -p dashboards -p conformance -p fleet
SOURCES := operator tools tests hack

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}'

.PHONY: venv
venv: ## The Python environment with all pins (in .cache/venv)
	@hack/venv.sh $(VENV) requirements/dev.txt

.PHONY: demo
demo: venv ## The whole story, live: seven versions of a model, from optimization to rollback (GATEWAY=envoy: behind Envoy Gateway; KUBECONTEXT=name for a cluster of your own)
ifdef KUBECONTEXT
	@$(BIN)/python -m demo --context "$(KUBECONTEXT)" $(if $(TARGET),--target "$(TARGET)") $(if $(REGISTRY),--registry "$(REGISTRY)") $(DEMO_ARGS)
else
	@$(BIN)/python -m sandbox up
	@$(BIN)/python -m demo $(DEMO_ARGS)
endif

.PHONY: chaos
chaos: venv ## Some forty faults on the sandbox, each during a promotion and a rollback under load (about an hour, root); CHAOS_ARGS="--only NAME" for one
	@$(BIN)/python -m sandbox up
	@$(BIN)/python -m chaos $(CHAOS_ARGS)

.PHONY: soak
soak: venv ## Two hours of random changes, verbs, scaling and faults on ten models under load (root); SOAK_ARGS="--minutes 20 --seed N"
	@$(BIN)/python -m sandbox up
	@$(BIN)/python -m chaos.soak $(SOAK_ARGS)

.PHONY: gitops
gitops: venv ## The story by commits: a real Argo CD (built the first time) syncs models from Git on the sandbox, under load (root)
	@$(BIN)/python -m sandbox up
	@$(BIN)/python -m gitops $(GITOPS_ARGS)

.PHONY: gitops-modes
gitops-modes: venv ## Every example and the chart with a real Argo CD by client-side and server-side apply, each with and without ServerSideDiff (root)
	@$(BIN)/python -m sandbox up
	@$(BIN)/python -m gitops.modes

.PHONY: check
check: lint test-unit ## What a change needs first, without root: static checks, and unit tests in about a minute

.PHONY: test
test: ## All tests: static checks, integration on the real API server, end to end on the sandbox (root), unit and property beside them
	@began=$$EPOCHSECONDS; hack/venv.sh $(VENV) requirements/dev.txt; $(BIN)/python hack/phases.py --began $$began

.PHONY: test-unit
test-unit: venv ## Unit and property tests without the slow (real models) and heavy (seconds of processor time) ones, without root
	$(PYTEST) -q -n 2 -m "not slow and not heavy" tests/unit tests/property

.PHONY: coverage
coverage: venv ## Unit and property tests without the slow ones, and the lines that they miss; fails below the floor in pyproject.toml
	$(PYTEST) -q -n 2 -m "not slow" --cov=operator/modelrollout tests/unit tests/property

.PHONY: test-integration
test-integration: venv ## Tests against the sandbox's API server, Prometheus and object store (root)
	@$(BIN)/python -m sandbox up
	$(WITH_SANDBOX) $(PYTEST) tests/integration

.PHONY: test-e2e
test-e2e: venv ## End to end on the sandbox (root), or on a cluster of your own: KUBECONTEXT=name TARGET=file.yaml [REGISTRY=r]
ifdef KUBECONTEXT
	KUBECONTEXT="$(KUBECONTEXT)" TARGET="$(TARGET)" $(if $(REGISTRY),REGISTRY="$(REGISTRY)") $(PYTEST) tests/e2e
else
	@$(BIN)/python -m sandbox up
	$(WITH_SANDBOX) $(PYTEST) tests/e2e
endif

.PHONY: test-gateways
test-gateways: venv ## The end-to-end tests of what depends on the gateway, behind Envoy Gateway (root; built the first time)
	@$(BIN)/python -m sandbox up --gateway envoy
	GATEWAY=envoy $(WITH_SANDBOX) $(PYTEST) -m gateway tests/e2e

.PHONY: test-stores
test-stores: venv ## The store schemes on servers that others wrote: fake-gcs-server, Azurite, a registry (Go and npm; built the first time)
	@hack/stores.sh $(CURDIR)/.cache/stores
	$(PYTEST) tests/stores

.PHONY: calibrate
calibrate: venv ## Judge a million simulated rollouts as the operator and two rivals do: false alarms, misses, time, harm (under 10 minutes)
	@$(BIN)/python -m calibrate --picture docs/explanation

.PHONY: conformance
conformance: venv ## The models of the ONNX project's own tests through every step: right, wrong, unrunnable, refused (15 minutes); CONFORMANCE_ARGS="--only NAME"
	@$(BIN)/python -m conformance $(CONFORMANCE_ARGS)

.PHONY: bench-optimizer
bench-optimizer: venv ## Measure every optimization step on a convolutional network, a perceptron and trees: size, accuracy, latency
	@$(BIN)/python -m bench $(BENCH_ARGS)

.PHONY: bench-fleet
bench-fleet: venv ## What 300 models cost the operator, and 300 rollouts Argo Rollouts: CPU, requests, memory; FLEET_ARGS="--objects 1000"
	@$(BIN)/python -m fleet $(FLEET_ARGS)

.PHONY: lint
lint: venv ## ruff, mypy --strict, layer contracts, generated files current
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/lint-imports
	$(BIN)/python -m modelrollout.crdgen --check
	PYTHONPATH=tools $(BIN)/python -m dashboards --check
	$(BIN)/python -m modelrollout.reasonsgen --check
	$(BIN)/python -m hack.reference --check

.PHONY: docs
docs: ## Build the documentation as a site in build/site/html, and check its links and anchors
	@hack/venv.sh $(CURDIR)/.cache/docs requirements/docs.txt
	@$(CURDIR)/.cache/docs/bin/python hack/docs_site.py

.PHONY: generate
generate: venv ## Write crds/, the chart's copy of it, the dashboards, and the pages on reasons, fields and commands
	$(BIN)/python -m modelrollout.crdgen
	PYTHONPATH=tools $(BIN)/python -m dashboards
	$(BIN)/python -m modelrollout.reasonsgen
	$(BIN)/python -m hack.reference

.PHONY: pins
pins: ## Resolve pyproject.toml into requirements/*.txt, to the newest versions that fit
	python3 hack/pins.py

.PHONY: sandbox-up
sandbox-up: venv ## Start a real cluster on this machine (root): control plane, GPU node, gateway, Prometheus, object store, images
	@$(BIN)/python -m sandbox up

.PHONY: sandbox-down
sandbox-down: venv ## Stop the sandbox; only installed packages and the cache stay
	@$(BIN)/python -m sandbox down

.PHONY: sandbox-status
sandbox-status: venv ## Show what the sandbox runs, and where
	@$(BIN)/python -m sandbox status

.PHONY: clean
clean: ## Remove everything that was built in the checkout
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
