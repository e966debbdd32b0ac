# Everything a newcomer needs is here; `make help` lists it.
#
# Ctrl-C: the terminal sends SIGINT to make and to the program that it runs, the program cleans
# up, and make waits for it. SIGTERM (timeout, a service manager) reaches the program too, because
# make passes it on to its direct child: recipes therefore run long programs with `exec`.

SHELL := /bin/bash
# rustup installs where only a new login looks.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Everything that is built lies in target/, which `clean` deletes.
unexport CARGO_TARGET_DIR

# Demo and tests share one build; only the benchmarks are worth an optimized second one.
CARGO_FLAGS := --locked

.DEFAULT_GOAL := help
.PHONY: help setup build demo test bench lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing on this machine
	@scripts/setup

build: setup ## build every program, and the guests of the demo and the tests
	cargo build $(CARGO_FLAGS) --workspace --exclude pollux-bench --bins
	@scripts/guest >/dev/null

demo: build ## two hosts, a guest, its twin, and the twin taking over
	@exec target/debug/demo

test: build ## all tests, with real guests
	exec cargo test $(CARGO_FLAGS) --workspace

bench: setup ## figures into target/bench; ONLY=dataplane or ONLY=failover for a part
	cargo build $(CARGO_FLAGS) --release --workspace --bins
	@exec target/release/bench $(ONLY)

lint: setup ## format, clippy, layers, licences and advisories
	@scripts/lint

clean: ## delete everything that was built
	rm -rf target
