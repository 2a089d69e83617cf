# Every target creates .venv when it is missing or older than the lock, and says what it does.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
OLDEST := .venv-oldest-torch/bin/python
TESTBED := PYTHONPATH=tests $(PY) -m testbed
# A worker takes a file at a time, with a cluster of its own where the file asks for one. Three on two cores: much of it waits.
# One that dies is not replaced: the next would take the same test and die of it.
WORKERS ?= -n 3 --dist loadfile --max-worker-restart 0

.PHONY: help venv demo demo-verify test test-oldest-torch test-trainer-oldest-torch e2e sweep gitops cluster-demo cluster-up cluster-down check crds images bench lock clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

venv: $(STAMP) ## create .venv from the hash lock

$(STAMP): requirements.lock pyproject.toml
	@echo "==> creating .venv from requirements.lock (torch is 4.7 GB on disk: about two minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else "the lock file is for Python 3.11 on Linux x86-64, this is %d.%d; elsewhere: pip install -e .[trainer,dev]" % sys.version_info[:2])'
	@df -Pk . | awk 'NR == 2 && $$4 < 8 * 1048576 {printf "==> %.1f GiB are free here; 8 are used while packages are unpacked, and 5.3 stay: pip may run out of space\n", $$4 / 1048576}'
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

test: $(STAMP) ## every test that needs no cluster, with real processes (about a quarter of an hour)
	@$(PY) -m pytest -q $(WORKERS) -m "not cluster and not quiet" --ignore=tests/scenarios
	@echo "==> verdicts by real timing: nothing runs beside them"
	@$(PY) -m pytest -q tests/scenarios

test-oldest-torch: $(STAMP) .venv-oldest-torch/.installed ## the probe's tests with scripts on the oldest torch (about four minutes)
	@AMDAHL_PROBE_PYTHON=$(CURDIR)/$(OLDEST) $(PY) -m pytest -q tests/probe

test-trainer-oldest-torch: .venv-trainer-oldest-torch/.installed ## the trainer's tests on the oldest torch that it runs on
	@PYTHONPATH=operator:trainer_image .venv-trainer-oldest-torch/bin/python -m pytest -q $(WORKERS) -p no:cacheprovider -m "not cluster and not quiet" tests/trainer

.venv-%/.installed: requirements-%.lock
	@echo "==> creating .venv-$* (3 to 5 GB on disk: about two minutes)"
	@$(PYTHON) -m venv --clear .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# `make e2e LESS=--ignore=tests/images` leaves out half an hour of building images.
e2e: $(STAMP) ## every test on a real Kubernetes, built here from Go modules (needs Go, and root for nodes)
	@$(PY) -m pytest -q $(WORKERS) -m "cluster and not quiet" $(LESS)

sweep: $(STAMP) ## kill the operator before and after every write of whole scenarios (up to an hour; docs/reliability.md)
	@$(PY) -m pytest -q -s tests/reliability -m "cluster and slow"

gitops: $(STAMP) ## Flux, Helm, Argo CD's apply and kubectl against the operator in every mode (twelve minutes; builds Flux once, six more)
	@$(PY) -m pytest -q -m quiet tests/gitops

cluster-demo: $(STAMP) ## tune a real PyTorch job on two real nodes, from kubectl apply to a patched spec (a quarter of an hour; wants a quiet machine)
	@echo "==> a job and its trials side by side, then in turn on a full cluster; what follows is kubectl get --watch"
	@$(PY) -m pytest -v -s -m quiet tests/e2e

cluster-up: $(STAMP) ## bring up a Kubernetes with two nodes and print how to use it (docs/testbed.md)
	@$(TESTBED) up

cluster-down: $(STAMP) ## take it down again
	@$(TESTBED) down

crds: $(STAMP) ## write the definitions, the chart's copies and docs/api.md from the models
	@$(PY) -m amdahl_loop.cli.crds

images: $(STAMP) ## build the operator's and the trainer's image without an engine (needs root)
	@PYTHONPATH=tests $(PY) -m testbed.dockerfiles operator trainer

check: $(STAMP) ## the fast inner loop: format, lint, types, layers, unit tests (under a minute)
	@echo "==> ruff format, ruff check"; .venv/bin/ruff format --check -q . && .venv/bin/ruff check -q .
	@echo "==> mypy"; .venv/bin/mypy
	@echo "==> import contracts"; .venv/bin/lint-imports --no-cache | tail -1
	@echo "==> generated files"; $(PY) -m amdahl_loop.cli.crds --check
	@echo "==> unit tests"; $(PY) -m pytest -q -m "not slow and not cluster" tests/domain tests/flow tests/contract tests/crds tests/handlers

bench: $(STAMP) ## scenarios and traps, truth against found (about two hours)
	@$(PY) benchmarks/scenarios/run.py

lock: ## renew requirements.lock (needs uv on PATH)
	uv pip compile pyproject.toml --all-extras --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-emit-index-url --no-emit-find-links --upgrade -q -o requirements.lock
	printf 'torch==1.13.0\nnumpy<2\n' | uv pip compile - --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-emit-index-url --no-emit-find-links -q -o requirements-oldest-torch.lock
	printf 'torch==2.11.0\nnumpy\npyyaml\nsafetensors\npydantic\npytest\npytest-xdist\nhypothesis\n' | uv pip compile - --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-header --no-emit-index-url --no-emit-find-links -q -o requirements-trainer-oldest-torch.lock
	PYTHONPATH=tests $(PY) -m images.image_lock

clean: ## remove what make created, the virtual environment included
	rm -rf .venv .venv-*-torch build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
