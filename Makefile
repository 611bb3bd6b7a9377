# What a contributor runs. `.ci/run` runs the same targets, each with a time limit. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help install format lint types imports check docs docs-reference test-fast test test-all coverage bench fuzz mutants clean

# Another version of Python gets an environment of its own: make test-fast PYTHON=3.13
ifeq ($(origin PYTHON),command line)
export UV_PYTHON := $(PYTHON)
export UV_PROJECT_ENVIRONMENT := .venv-$(PYTHON)
endif

TESTS ?=
BENCH ?= drain verify index query emit
INPUTS ?= 1000000
LIMIT =
MODULES ?=

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## Make the environment, in .venv
	uv sync --group dev --group docs --quiet --compile-bytecode

format: ## Format the code, and fix what ruff can fix
	uv run --no-sync ruff check --fix
	uv run --no-sync ruff format

lint: ## Check rules and formatting with ruff
	uv run --no-sync ruff check
	uv run --no-sync ruff format --check

types: ## Check types with mypy
	uv run --no-sync mypy

imports: ## Check which rooms may import which (contracts in pyproject.toml)
	uv run --no-sync lint-imports

check: lint types imports ## lint, types and imports

docs: ## Build the pages into build/site; a broken link or a page that docs/README.md does not list is an error
	rm -rf build/site build/doctrees
	uv run --no-sync python -m sphinx -q -E -W --keep-going -c docs/site -d build/doctrees . build/site

docs-reference: ## Make the reference pages, and the tables of others, from the code
	uv run --no-sync python -m docs.reference

test-fast: ## Test the library alone: no Kafka, no Elasticsearch, no Java. TESTS=tests/custody/tlog for less
	uv run --group dev pytest $(or $(TESTS),tests/custody)

test: ## Run all tests; those whose server this machine lacks are skipped
	uv run --group dev pytest $(TESTS)

test-all: export CUSTODY_REQUIRE_SERVERS := 1
test-all: ## Run all tests; those whose server this machine lacks fail; LIMIT=1200 for a time limit
	uv run --group dev pytest$(if $(LIMIT), -rfEs --seconds=$(LIMIT))

# A floor of what tests/custody alone run of custody/. Other runs with --cov have other shares.
coverage: ## Test the library alone, and fail if these tests run less than 93 % of it
	uv run --group dev pytest tests/custody --cov=custody --cov-fail-under=93

bench: ## Run the benchmarks, 17 minutes; BENCH=drain for one
	set -e; for name in $(BENCH); do uv run --group dev python -m tests.benchmarks.$$name; done

fuzz: ## Fuzz what the verifier reads; INPUTS=1000000
	uv run --group dev python -m tests.fuzz --inputs $(INPUTS)

mutants: ## Count what can be removed with no test failing, 90 minutes; MODULES=tlog/merkle for one
	uv run --group dev python -m tests.mutation $(MODULES)

clean: ## Remove caches and reports; environments and downloaded servers stay
	rm -rf .coverage* coverage.xml .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist mutants
	find custody deployments flows notebooks tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
