# `make` lists the targets. Everything runs from .venv, which `make install` keeps up to date.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PY := .venv/bin/python
CONFIG ?= examples/demo.yaml
# Set in many container images. Without byte code on disk each of the many processes compiles torch, vllm and ray anew.
unexport PYTHONDONTWRITEBYTECODE
# Two test processes share two cores; their libraries must not take both for themselves.
TESTING := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest --quiet --numprocesses=2

.PHONY: help install legacy s3 demo test test-cluster check format serve constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: ## make .venv and install what is pinned (PYTHON=..., EXTRA=cpu|gpu)
	@scripts/setup.sh

demo: install ## corpus to served model, end to end (CONFIG=examples/demo.yaml)
	@$(PY) -m qwen3emb.cli fetch-model smollm2-135m-instruct
	@$(PY) -m qwen3emb.cli fetch-model all-minilm-l6-v2
	@$(PY) -m jobs.pipeline --config "$(CONFIG)"

legacy s3: install
	@scripts/beside.sh $@

test: install legacy s3 ## unit tests, then integration tests
	@$(TESTING) --dist=worksteal --durations=5 tests/unit
	@$(TESTING) --dist=loadgroup --no-loadscope-reorder --durations=10 -m "not cluster" tests/integration tests/multinode

test-cluster: install s3 ## several isolated nodes: faults, autoscaling, one table from one, two and three nodes (45 minutes)
	@$(PY) -m pytest --quiet --durations=10 -m cluster tests/multinode

check: install ## ruff, mypy, every example config, generated documentation
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy --no-error-summary
	@for file in $(filter-out examples/datasets.yaml,$(wildcard examples/*.yaml)); do $(PY) -m qwen3emb.cli check-config "$$file" >/dev/null; done
	@$(PY) -m qwen3emb.config.docs --check
	@echo "check: ruff, mypy, examples and docs are in order"

format: install ## let ruff format and sort the code
	@$(PY) -m ruff check --fix --quiet . || true
	@$(PY) -m ruff format --quiet .

serve: install ## serve the models and the index of CONFIG
	@$(PY) -m jobs.serve --config "$(CONFIG)"

constraints: ## resolve pyproject.toml again into constraints/
	@scripts/constraints.sh

bench-%: install ## side by side with a peer: make bench-data ARGS="--parts mining"
	@benchmarks/run.sh "$*" $(ARGS)

clean: ## remove .venv, .venv-bench and caches; runs/ stays
	@rm -rf .venv .venv-bench .setup.lock .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	@find qwen3emb jobs serve cluster tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
