# Everything a person needs, from a fresh clone: `make run`, `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?=
CONFIG := $(if $(PROFILE),--config $(PROFILE))
Q ?= What is REM sleep?
override Q := $(value Q)
export Q

.DEFAULT_GOAL := help
.PHONY: help run demo ask chat test test-slow test-zero-shot test-train test-ray check data train train-router bench profile audit sbom licences lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: $(VENV)/.serve  ## set up and start the API and the chat page on http://127.0.0.1:8000
	$(BIN)/expert-router $(CONFIG) serve

demo: $(VENV)/.serve  ## the whole pipeline in seconds on the echo engine, without any weights
	$(BIN)/expert-router --config echo route "$$Q"
	$(BIN)/expert-router --config echo ask "$$Q"
	$(BIN)/expert-router --config echo ask "Who founded Ferrari? And what happens in the brain in REM sleep?"

ask: $(VENV)/.serve  ## ask one question: make ask Q="What is REM sleep?"
	@$(BIN)/expert-router $(CONFIG) ask "$$Q"

chat: $(VENV)/.serve  ## talk in the terminal
	@$(BIN)/expert-router $(CONFIG) chat

test: $(VENV)/.dev  ## set up and run the default tests
	$(BIN)/pytest -q

test-slow: $(VENV)/.dev  ## the tests that take minutes or need torch
	$(BIN)/pytest -q -m slow

test-zero-shot: $(VENV)/.zero-shot  ## the zero-shot baseline's tests: installs torch and transformers
	$(BIN)/pytest -q -m zero_shot

test-train: $(VENV)/.train  ## the tests of training an expert: installs torch, transformers, TRL and PEFT
	$(BIN)/pytest -q -m train

test-ray: $(VENV)/.ray  ## the tests of several nodes: installs Ray (350 MB)
	RAY_USAGE_STATS_ENABLED=0 $(BIN)/pytest -q -m ray

check: $(VENV)/.dev  ## format, lint, types, dependency direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

data: $(VENV)/.serve  ## validate, clean and split data/raw into data/processed
	$(BIN)/expert-router prepare

# How the shipped adapters and rules were made, on the tiny profile's base otherwise than on the default one.
tiny := $(filter tiny,$(PROFILE))
RECIPE := --passes 2 $(if $(tiny),--rank 4 --learning-rate 6e-4)
FALSE_REFUSALS_sleep := $(if $(tiny),0.05,0.03)
FALSE_REFUSALS_cars := 0.01

train: train-sleep train-cars  ## train both experts on the configured base, install their adapters, find when they refuse

train-%: $(VENV)/.train
	$(BIN)/expert-router $(CONFIG) train expert $* $(RECIPE) --install
	$(BIN)/expert-router $(CONFIG) train abstention $* $(if $(FALSE_REFUSALS_$*),--false-refusals $(FALSE_REFUSALS_$*))

train-router: $(VENV)/.serve  ## fit the router on data/processed
	$(BIN)/expert-router train router

bench: $(VENV)/.serve  ## the tables of docs/benchmarks.md
	$(BIN)/expert-router bench routers
	$(BIN)/expert-router --config tiny bench engine
	$(BIN)/expert-router --config default bench engine
	$(BIN)/expert-router --config echo bench cache

profile: PORT ?= 8019
profile: $(VENV)/.dev  ## what holds Python while a server answers: runs/profile-*.svg, by py-spy (docs/load.md)
	@mkdir -p runs; router=$(BIN)/expert-router; \
	$$router $(CONFIG) serve --no-page --port $(PORT) > runs/profile.log 2>&1 & server=$$!; trap "kill $$server; wait $$server" EXIT; \
	until $(BIN)/python -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:$(PORT)/health/ready')" 2> /dev/null; do \
		kill -0 $$server 2> /dev/null || { cat runs/profile.log; exit 1; }; sleep 1; done; \
	$(BIN)/py-spy record --gil --threads --subprocesses --duration 25 --pid $$server --output "runs/profile-$$(date +%Y%m%d-%H%M%S).svg" & spy=$$!; \
	$$router bench load --url http://127.0.0.1:$(PORT) --concurrency 8 --seconds 20 --no-cache; wait $$spy

audit: $(VENV)/.dev  ## known vulnerabilities of what serving installs (asks pypi.org; fails where it cannot)
	$(BIN)/uv tool run --from pip-audit==2.10.1 pip-audit --strict --require-hashes --disable-pip -r requirements.lock

sbom: $(VENV)/.dev  ## what serving installs as a CycloneDX bill of materials: runs/sbom.json
	@mkdir -p runs
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --of JSON -o runs/sbom.json

licences: $(VENV)/.dev  ## docs/licences.md: the licences of what serving installs; fails for one that is not allowed
	$(BIN)/python .ci/licences.py

lock: $(VENV)/.dev  ## resolve requirements*.txt anew from pyproject.toml
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --generate-hashes -c requirements.txt pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --extra ui -c requirements.txt pyproject.toml -o requirements-ui.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --extra ui --extra parquet --extra pdf --group dev -c requirements-ui.txt pyproject.toml -o requirements-dev.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-deps --extra train -c requirements-dev.txt -c requirements-zero-shot.txt pyproject.toml -o requirements-train.txt

clean:  ## remove the environment and caches of this checkout (weights stay in the user's cache)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: requirements.lock requirements-ui.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV): about 650 MB, a few minutes the first time ..."
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-ui.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.zero-shot: requirements-zero-shot.txt $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-zero-shot.txt
	@touch $@

$(VENV)/.train: requirements-train.txt $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-train.txt
	@touch $@

$(VENV)/.ray: pyproject.toml $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements-dev.txt -e '.[ray]'
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.serve
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@
