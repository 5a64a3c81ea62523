# What a person can do here; `make help` lists it. Two commands matter: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := $(CURDIR)/.cache/venv
BIN := $(VENV)/bin
export PYTHONPATH := $(CURDIR)/operator:$(CURDIR)/tools:$(CURDIR)
export PYTHONDONTWRITEBYTECODE := 1
PYTEST := $(BIN)/python -m pytest
# What the tests on the sandbox need to know of it.
WITH_SANDBOX = MODELROLLOUT_KUBECONFIG=$$($(BIN)/python -m sandbox kubeconfig) HELM=$$($(BIN)/python -m sandbox exec -- which helm)
PACKAGES := -p modelrollout -p sandbox -p demo -p calibrate -p chaos -p bench
SOURCES := operator tools tests hack

.PHONY: help
help: ## List what can be done
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}'

.PHONY: venv
venv: ## The Python environment with all pins (in .cache/venv)
	@hack/venv.sh $(VENV) requirements/dev.txt

.PHONY: demo
demo: venv ## The main job, live: seven versions of a model, from optimization to rollback (KUBECONTEXT=name for a cluster of your own)
ifdef KUBECONTEXT
	@$(BIN)/python -m demo --context "$(KUBECONTEXT)" $(if $(TARGET),--target "$(TARGET)") $(if $(REGISTRY),--registry "$(REGISTRY)") $(DEMO_ARGS)
else
	@$(BIN)/python -m sandbox up
	@$(BIN)/python -m demo $(DEMO_ARGS)
endif

.PHONY: chaos
chaos: venv ## Some thirty faults on the sandbox, each in a promotion and a rollback under load (half an hour, root); CHAOS_ARGS="--only NAME" for one
	@$(BIN)/python -m sandbox up
	@$(BIN)/python -m chaos $(CHAOS_ARGS)

# Unit tests have the processor while those on the sandbox wait, which is most of their time.
.PHONY: test
test: lint ## All tests: static checks, integration on the real API server, end to end on the sandbox (root), unit and property beside them
	@$(BIN)/python -m sandbox up
	@mkdir -p build; failed=0; \
	$(PYTEST) -q -n 1 tests/unit tests/property >build/test-unit.log 2>&1 & unit=$$!; \
	$(WITH_SANDBOX) $(PYTEST) --durations=40 --durations-min=10 tests/integration tests/e2e || failed=1; \
	wait $$unit || { failed=1; echo "of the unit and property tests:"; cat build/test-unit.log; }; \
	tail -n 1 build/test-unit.log; exit $$failed

.PHONY: test-unit
test-unit: venv ## Unit and property tests but those that train or convert models, without root, in about a minute and a half
	$(PYTEST) -q -n 2 -m "not slow" tests/unit tests/property

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

.PHONY: calibrate
calibrate: venv ## The operator's judgement and two rivals' on a million simulated rollouts: false alarms, misses, time, harm (under 10 minutes)
	@$(BIN)/python -m calibrate --picture docs/explanation

.PHONY: bench-optimizer
bench-optimizer: venv ## Every optimization step on a convolutional network, a perceptron and trees: size, accuracy, latency (trains once, then cached)
	@$(BIN)/python -m bench $(BENCH_ARGS)

.PHONY: lint
lint: venv ## ruff, mypy --strict, layer contracts, generated files current
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/lint-imports
	$(BIN)/python -m modelrollout.crdgen --check
	$(BIN)/python -m modelrollout.reasonsgen --check

.PHONY: generate
generate: venv ## Write crds/ and the chart's copy from the types, and the pages on reasons
	$(BIN)/python -m modelrollout.crdgen
	$(BIN)/python -m modelrollout.reasonsgen

.PHONY: pins
pins: ## Resolve pyproject.toml into requirements/*.txt anew
	python3 hack/pins.py

.PHONY: sandbox-up
sandbox-up: venv ## A real cluster on this machine (root): control plane, GPU node, gateway, Prometheus, object store, images
	@$(BIN)/python -m sandbox up

.PHONY: sandbox-down
sandbox-down: venv ## End it; nothing stays but installed packages and the cache
	@$(BIN)/python -m sandbox down

.PHONY: sandbox-status
sandbox-status: venv ## What runs, where, with which versions
	@$(BIN)/python -m sandbox status

.PHONY: clean
clean: ## Remove what was built in the checkout
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
