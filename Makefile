# `make help` lists all targets.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PARALLEL := -n 6 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test soak check docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/ready  ## make a virtual environment and, if no HTCondor is on the PATH, install a private one
	@$(BIN)/python -c 'from glide.condor import install; install.ensure()'

.venv/ready: pyproject.toml constraints.txt
	@echo "setting up .venv (the first time downloads torch and transformers)" >&2
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[models,parquet,dev]'
	@touch $@

demo: setup  ## run a prompt sweep on warm glideins and an embedded pool; takes about a minute
	@set -e; export GLIDE_HOME=$$(mktemp -d -t glide-demo-XXXXXX); \
	trap '$(BIN)/glide pool down >/dev/null; rm -rf "$$GLIDE_HOME"' EXIT; \
	$(BIN)/glide pool up; eval "$$($(BIN)/glide pool env)"; \
	$(BIN)/glide sweep run workflows/promptverify/sweep.yaml --site site_configs/local.yaml --again

test: setup  ## run all tests except the long ones, also those on a real embedded pool
	$(BIN)/pytest $(PARALLEL)

# The newest Python on this machine for which all pinned packages have wheels. Its environment has no torch: tests that
# need torch run only in the first one.
NEWEST ?= $(shell for each in python3.14 python3.13 python3.12; do $$each -c '' 2>/dev/null && echo $$each && break; done)

.venv-newest/ready: pyproject.toml constraints.txt
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[parquet,dev]'
	@touch $@

MINUTES ?= 60
soak: setup $(if $(NEWEST),.venv-newest/ready)  ## run the long tests, all tests without torch on the newest Python, and an hour of faults (MINUTES=60)
	$(BIN)/pytest -m soak --timeout 3600
	$(if $(NEWEST),.venv-newest/bin/pytest -m 'not soak and not models' $(PARALLEL))
	$(BIN)/python workflows/soak/run.py --minutes $(MINUTES)

check: .venv/ready  ## check lint rules, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready  ## generate docs/reference.md from the program and docs/results.md from the experiments
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/results.py

clean:  ## remove the files of setup and tests in this folder (the HTCondor cache stays)
	rm -rf .venv .venv-newest build *.egg-info .pytest_cache .mypy_cache .ruff_cache results results.[0-9]*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
