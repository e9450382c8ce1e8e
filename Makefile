# The one door. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest
# What starts no machines, namespaces and the like runs in two processes, a file at a time.
QUICK := $(PYTEST) -q -n 2 --dist loadfile -m "not system"
CARGO_TEST := cargo test --workspace --exclude nuage-python --locked -q
ONCE ?=

.PHONY: help setup setup-test as-root units package demo fmt lint type layers rust test unit sim system fuzz torture bench docs check clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  \033[1m%-11s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## install what Nuage needs and build it (safe to repeat)
	@tools/setup

setup-test:  ## and what tests and benchmarks need
	@tools/setup --test

as-root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root (network namespaces, cgroups, mounts, systemd's units): sudo make $(MAKECMDGOALS)" >&2; exit 1; }

units: as-root setup  ## write systemd's units for this tree (root)
	@tools/units

package: setup  ## build a Debian package of this tree: dist/nuage_VERSION_ARCH.deb
	@tools/package

demo: as-root setup  ## start a federation of four datacenters and run the main job (ONCE=1 cleans up)
	@$(VENV)/python -m nuage.cli.main lab demo $(if $(ONCE),--once)

fmt: setup-test  ## format all code
	@$(VENV)/ruff format . && $(VENV)/ruff check --fix -q . ; cargo fmt --all

lint: setup-test  ## check format and style
	@$(VENV)/ruff format --check . && $(VENV)/ruff check .
	@cargo fmt --all --check && cargo clippy --workspace --all-targets --locked -q -- -D warnings

type: setup-test  ## check types
	@$(VENV)/mypy

layers: setup-test  ## check that intent flows down
	@$(VENV)/lint-imports

rust: setup-test  ## run the Rust tests (all once more, should one fail: a machine may stand still)
	@$(CARGO_TEST) || { echo "a Rust test failed, see above: all are run once more"; $(CARGO_TEST); }

unit: setup-test  ## run the quick Python tests
	@$(QUICK)

sim: setup-test  ## run the simulations with many seeds (SEEDS=10000)
	@NUAGE_SEEDS=$(or $(SEEDS),10000) NUAGE_SIM_SEEDS=$(or $(SEEDS),10000) $(PYTEST) -q --timeout 0 tests/simulation

system: setup-test  ## run the tests on namespaces, QEMU and etcd (root)
	@$(PYTEST) -q -m system

test: setup-test rust  ## run every test
	@$(QUICK)
	@$(PYTEST) -q -m system

check: lint type layers  ## all that reads code without running it

fuzz: setup-test  ## fuzz what reads bytes of strangers (SECONDS_EACH=30; TARGETS="nbd proof")
	@tools/fuzz $(TARGETS)

torture: setup-test  ## the long runs: many seeds, many kills
	@tools/torture

bench: setup-test  ## run every benchmark beside its peer
	@tools/bench

clean:  ## remove what was built
	@rm -rf .venv target .build .mypy_cache .ruff_cache .pytest_cache .hypothesis
