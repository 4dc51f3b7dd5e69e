# `make help` lists the targets. Every target works on a fresh clone.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Extra arguments for pip; CPU-only torch without CUDA packages:
#   make install PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
STAMP  := $(VENV)/.installed
# The dashboard's source, and the page that its build leaves last.
PAGES  := $(shell find dashboard/src -type f -not -name schema.d.ts) dashboard/build.mjs
BUILT  := service/static/.built
# Two processes; a file of tests, or a folder that shares a service, stays in one of them.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder \
	--durations=25 --junitxml=build/tests.xml
NPM    := cd dashboard && PATH="$(abspath $(BIN)):$$PATH" npm

.DEFAULT_GOAL := help
.PHONY: help install dashboard demo serve test test-all slowest faults fuzz check lock audit format bench \
	bench-full soak docs docs-serve clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## create .venv and install everything into it

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[all]' --group dev
	touch $@

dashboard: $(BUILT) ## build the dashboard's pages (needs the npm registry once)

$(BUILT): $(STAMP) dashboard/package-lock.json $(PAGES)
	$(NPM) ci --silent
	$(NPM) run --silent build
	touch $@

demo: $(STAMP) ## tune on real handwritten digits, end to end, and print the result
	@$(BIN)/sharpzo demo

serve: $(STAMP) ## run the service with its embedded defaults
	@$(MAKE) dashboard || echo "the dashboard could not be built; the API works without it"
	$(BIN)/sharpzo serve

test: $(BUILT) ## run the fast tests (at most 8 minutes on 2 cores)
	$(PYTEST) -m "not slow"

test-all: $(BUILT) ## run all tests (at most 20 minutes on 2 cores)
	$(PYTEST)

slowest: $(STAMP) ## print which tests took longest in the last run
	@$(BIN)/python tools/slowest.py

faults: $(STAMP) ## kill, starve and damage real processes; needs redis-server and PostgreSQL (half an hour)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults

fuzz: $(STAMP) ## odd requests and damaged files by the hundred thousand (half an hour on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz

check: $(BUILT) ## format check, lint, types, import contracts, Dockerfile, dashboard
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	mkdir -p build && $(BIN)/python tools/openapi_json.py > build/openapi.json
	$(NPM) run --silent check

lock: $(STAMP) ## pin the packages of the images, with hashes (docker/*.lock)
	$(BIN)/python -m pip install --quiet --group release
	$(BIN)/python docker/lock.py

audit: $(STAMP) ## check the packages of the images for known vulnerabilities (needs the internet)
	$(BIN)/python -m pip install --quiet --group release
	$(BIN)/pip-audit --requirement docker/requirements.lock --require-hashes --disable-pip
	$(BIN)/pip-audit --requirement docker/client.lock --require-hashes --disable-pip
	$(BIN)/pip-audit --requirement docker/torch.txt --no-deps --disable-pip

format: $(BUILT) ## format and autofix with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(NPM) run --silent format

bench: $(STAMP) ## run every benchmark in its short form (about a quarter of an hour on 2 cores)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

bench-full: $(STAMP) ## measure the figures that the documentation states (hours)
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks --full --markdown benchmarks/results/full.md

soak: $(STAMP) ## ten minutes of mixed load on a separate server: does it leak, fail or mix up prompts?
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.soak

docs: $(STAMP) ## build the documentation as a site in site/
	$(BIN)/python tools/openapi_page.py build/openapi.md
	$(BIN)/zensical build --strict --clean

docs-serve: $(STAMP) ## serve the documentation on http://localhost:8001 and rebuild it on every change
	$(BIN)/python tools/openapi_page.py build/openapi.md
	$(BIN)/zensical serve --dev-addr localhost:8001

clean: ## remove caches and build output, not the virtual environment
	rm -rf build dist site .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache service/static \
		dashboard/node_modules
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
