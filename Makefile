# make run    the main job: CONNECTIONS WebSocket connections on this machine, one report at the end
# make test   every check: lint, types, imports, tests (the privileged ones for real when root)
# Both start from a bare Debian or Ubuntu machine and install only what is missing.

ifeq ($(wildcard /bin/bash /usr/bin/bash),)
$(error bash is missing (to get it: apk add bash, or the command of your distribution))
endif
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CONNECTIONS ?= 120000
ARGS ?=
RESULTS ?=
VENV := .venv
BIN := $(VENV)/bin
# Two parts, one after the other: what mostly waits or only calculates, and what takes turns on the
# cores. tests/conftest.py has the order in each. Kernels boot on demand (test-kernels).
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder
IN_TURN := alone or shared or in_turn
# make test-all takes the variants as well.
WITHOUT := boots or variant
junit = $(if $(RESULTS),--junitxml='$(RESULTS)/$(1).xml')
# Where a container sets it, each of hundreds of processes would compile the tree anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-dev install-peers run run-cluster test test-all test-beside-neighbours test-kernels test-containers test-distributions test-hard bench bench-servers bench-attach recordings score diagnose lint format clean lock man reference screenshots

help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

install: ## environment in .venv, so that .venv/bin/profile-run works
	@bash .ci/setup run

install-dev: ## the same with what the tests need
	@bash .ci/setup test

install-peers: install-dev ## other people's servers, for tests and bench, in .venv-peers
	@bash .ci/setup peers

run: install ## the main job: make run CONNECTIONS=120000 ARGS='--hold 10'
	@$(BIN)/profile-run --connections $(CONNECTIONS) $(ARGS)

run-cluster: install-dev ## a run over four hosts that are network namespaces of this machine (root)
	@$(BIN)/python -m tests.hosts --clients 3 -- profile-run --connections 12000 $(ARGS)

lint: install-dev ## ruff, mypy --strict, import-linter, and the rules in lint/
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache && $(BIN)/python -m lint

format: install-dev ## let ruff format the tree
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

test: install-dev ## lint and every test; make test ARGS='tests/analysis -x' for some
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint install-peers
	@$(BIN)/pytest -m 'not ($(IN_TURN) or $(WITHOUT))' --numprocesses 3 $(SIDE_BY_SIDE) $(call junit,ordinary)
	@$(BIN)/pytest -m '($(IN_TURN)) and not ($(WITHOUT))' --numprocesses 5 $(SIDE_BY_SIDE) $(call junit,in-turn)
else
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint install-peers
	@$(BIN)/pytest $(ARGS) $(call junit,some)
endif

test-all: ## make test with the variants of what it proves: other servers, rows and neighbours
	@$(MAKE) --no-print-directory test WITHOUT=boots

test-beside-neighbours: install-dev ## make test in fresh clones, quiet and beside noisy neighbours; ARGS='--repeats 1'
	@$(BIN)/python -m bench.beside_neighbours $(ARGS)

test-kernels: install-dev ## boot stock kernels in QEMU: docs/kernels.md; ARGS='6.1 --checks run,attach' for some
	@$(BIN)/python -m tests.kernels $(if $(strip $(ARGS)),$(ARGS),--markdown docs/kernels.md)

test-containers: install-dev ## try it in containers of each kind: docs/containers.md; ARGS='docker --checks run' for some
	@$(BIN)/python -m tests.containers $(if $(strip $(ARGS)),$(ARGS),--markdown docs/containers.md)

test-distributions: install-dev ## make run from nothing on other Debians and Ubuntus: docs/distributions.md
	@$(BIN)/python -m tests.distributions $(if $(strip $(ARGS)),$(ARGS),--markdown docs/distributions.md)

test-hard: install-dev ## 200 kills, 10,000 damaged recordings, a million frames and handshakes: hours
	@$(BIN)/python -m bench.kill_matrix --kills 200
	@$(BIN)/python -m bench.fuzz_recordings --count 10000 --seed 1
	@$(BIN)/python -m bench.fuzz_protocol --count 1000000 --seed 1
	@$(BIN)/pytest --hypothesis-profile hard tests/harness/websocket/test_protocol.py tests/harness/websocket/test_frames.py tests/harness/websocket/test_handshake.py

bench: install-dev ## the figures of docs/benchmarks.md, measured here
	@$(BIN)/python -m bench $(ARGS)

bench-servers: install-peers ## other people's servers: docs/benchmarks-servers.md and its page
	@$(BIN)/python -m bench.server_bench $(ARGS)

bench-attach: install-dev ## what profile-attach costs a server: docs/benchmarks-attach.md
	@$(BIN)/python -m bench.attach $(ARGS)

recordings: install-peers ## record what tests/recordings holds; what is there stays (ARGS='--again --only ID')
	@$(BIN)/python -m bench.record $(ARGS)

score: install-dev ## how good the verdict is on the recordings: docs/diagnosis.md
	@$(BIN)/python -m bench.score --markdown docs/diagnosis.md $(ARGS)

diagnose: install ## provoke every cause three times, and meet what is predicted: docs/diagnosis-provoked.md, docs/predictions.md
	@$(BIN)/profile-matrix every-cause --repeats 3 --markdown docs/diagnosis-provoked.md $(ARGS)
	@$(BIN)/python -m bench.predictions --markdown docs/predictions.md

screenshots: install-dev ## pictures of a fresh run's pages in screenshots/, and docs/report.png
	@$(BIN)/python -m documentation.screenshots $(ARGS)

man: install-dev ## docs/man/*.1 anew from the parsers of the commands
	@$(BIN)/python -m documentation man

reference: install-dev ## docs/reference/*.md and docs/explanation/probes.md anew from the code
	@$(BIN)/python -m documentation reference

lock: ## requirements*.lock anew from pyproject.toml (needs uv)
	@uv pip compile --universal --generate-hashes --no-header --no-annotate -q --python-version 3.11 pyproject.toml --group build -o requirements.lock
	@uv pip compile --universal --generate-hashes --no-header --no-annotate -q --python-version 3.11 pyproject.toml --group dev -o requirements-dev.lock
	@uv pip compile --universal --generate-hashes --no-header --no-annotate -q --python-version 3.11 requirements-peers.in -o requirements-peers.lock

clean: ## remove the environment and caches; recorded runs stay
	@rm -rf $(VENV) .venv-peers build dist tests/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
