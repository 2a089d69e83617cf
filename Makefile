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

demo: $(STAMP) ## tune the demo job on this machine: observe, try, refute, apply (about five minutes)
	@echo "==> amdahl-loop run examples/pydocs/job.yaml (its own ledger under build/demo; your files stay as they are)"
	@mkdir -p build/demo && rm -f build/demo/ledger.sqlite*
	@.venv/bin/amdahl-loop run examples/pydocs/job.yaml --ledger build/demo/ledger.sqlite

demo-verify: $(STAMP) ## measure the demo's claim from outside: five interleaved runs of both settings
	@$(PY) benchmarks/demo_verify.py --ledger build/demo/ledger.sqlite

test: $(STAMP) ## every test, with real processes (about ten minutes)
	@$(PY) -m pytest -q

check: $(STAMP) ## the fast inner loop: format, lint, types, layers, unit tests (under a minute)
	@echo "==> ruff format, ruff check"; .venv/bin/ruff format --check -q . && .venv/bin/ruff check -q .
	@echo "==> mypy"; .venv/bin/mypy
	@echo "==> import contracts"; .venv/bin/lint-imports --no-cache | tail -1
	@echo "==> unit tests"; $(PY) -m pytest -q -m "not slow" tests/domain tests/flow tests/contract

bench: $(STAMP) ## scenarios and traps, truth against found (about two hours)
	@$(PY) benchmarks/scenarios/run.py

lock: ## renew requirements.lock (needs uv on PATH)
	uv pip compile pyproject.toml --all-extras --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-emit-index-url --no-emit-find-links --upgrade -q -o requirements.lock

clean: ## remove what make created, the virtual environment included
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
