# The one door: people and CI run the same targets. `make` alone lists them.

CARGO ?= cargo
export RUSTDOCFLAGS := -D warnings

.PHONY: help demo run test test-long check bench format packages dependencies

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## from nothing to a certificate out of a SoftHSM token, each step in a line; CACERTS=DIR for your own CA
	@softhsm/demo.sh

run: ## the same, and the daemon stays up
	@softhsm/demo.sh --stay

test: packages ## every test, with SoftHSM
	$(CARGO) test --locked --all-targets
	$(CARGO) test --locked --doc

test-long: packages ## what takes too long for every change
	$(CARGO) test --locked --release --all-targets -- --include-ignored

check: packages dependencies ## format, lints, documentation, dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) doc --locked --no-deps --document-private-items
	@for script in .ci/run benches/*.sh softhsm/*.sh; do bash -n $$script || exit 1; done

dependencies: ## licences, bans and sources of what the lock file names
	@.ci/dependencies

bench: packages ## the pure parts (criterion), then a daemon beside its parts and the speed goals
	$(CARGO) bench --locked
	@benches/endpoint.sh

format: ## format the sources
	$(CARGO) fmt

packages: ## install the distribution packages that are missing
	@softhsm/packages.sh
