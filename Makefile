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

# `make fuzz SECONDS=10`. Only from the command line: bash has a variable of this name.
SECONDS_EACH := $(if $(filter command,$(firstword $(origin SECONDS))),$(SECONDS),60)

.DEFAULT_GOAL := help
.PHONY: help setup build demo test fuzz seeds chaos bench lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing on this machine
	@scripts/setup

build: setup ## build every program, and the guests of the demo and the tests
	cargo build $(CARGO_FLAGS) --workspace --exclude pollux-bench --bins
	@scripts/guest >/dev/null

demo: build ## two hosts, a guest, its twin, and the twin taking over
	@exec target/debug/demo

test: build ## all tests, with real guests, then each fuzz target for half a minute
	exec cargo test $(CARGO_FLAGS) --workspace
	@exec $(MAKE) --no-print-directory fuzz SECONDS=30

fuzz: setup ## each fuzz target for SECONDS=60, two at once; ONLY=vm_toml for one of them
	@exec cargo run --quiet $(CARGO_FLAGS) --package pollux-fuzz --bin fuzz -- $(SECONDS_EACH) $(ONLY)

seeds: setup ## SEEDS=2000 of the simulated network, and of power cuts and full disks at every durable step
	POLLUX_SEEDS=$(or $(SEEDS),2000) RUST_BACKTRACE=0 exec cargo test $(CARGO_FLAGS) --lib --package pollux-replica \
		--package pollux-journal --package pollux-diskd -- --nocapture driver power full lives

chaos: build ## random kills, cuts, full disks and commands over two hosts; SEED=1 and ROUNDS=5 are what they are
	@exec target/debug/chaos --seed $(or $(SEED),1) --rounds $(or $(ROUNDS),5)

bench: setup ## figures into target/bench; ONLY=dataplane, tracking, traces, replication or failover for a part
	cargo build $(CARGO_FLAGS) --release --workspace --bins
	@exec target/release/bench $(ONLY)

lint: setup ## format, clippy, layers, licences and advisories
	@scripts/lint

clean: ## delete everything that was built
	rm -rf target
