# Every target creates .venv when it is missing or older than the lock, and says what it does.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed

.PHONY: help venv demo demo-verify test check bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

venv: $(STAMP) ## create .venv from the hash lock

$(STAMP): requirements.lock pyproject.toml
	@echo "==> creating .venv from requirements.lock (torch is 4.7 GB on disk: about two minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "the lock file is for Python 3.11 on Linux x86-64, this is %d.%d; elsewhere: pip install -e .[trainer,dev]" % sys.version_info[:2])'
	@$(PYTHON) -m venv --clear .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
