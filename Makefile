# The one door: people and CI run the same targets. `make` alone lists them.

CARGO ?= cargo
export RUSTDOCFLAGS := -D warnings

# A test fails by panicking, and counts with numbers of its own making.
IN_TESTS := $(addprefix -A clippy::,unwrap_used expect_used panic as_conversions cast_possible_truncation \
	cast_possible_wrap cast_sign_loss disallowed_methods type_complexity unwrap_in_result)

.PHONY: help demo run test test-foreign test-long faults check bench format packages dependencies test-browser \
	test-pkilint test-istio test-kube test-deploy test-tokens image

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## from nothing to a certificate out of a SoftHSM token, each step in a line; CACERTS=DIR for your own CA
	@scripts/demo.sh

run: ## the same, and the daemon stays up
	@scripts/demo.sh --stay

test: packages ## every test, with SoftHSM
	$(CARGO) test --locked --workspace --all-targets --no-fail-fast
	$(CARGO) test --locked --workspace --doc

test-browser: ## the status page in a headless Chromium; pictures in target/tmp/status-page
	@scripts/packages.sh --for browser
	$(CARGO) test --locked --test browser -- --ignored

test-foreign: ## checkpoints and proofs judged by another implementation, in Go; metrics and alert rules by promtool
	@scripts/packages.sh --for foreign
	$(CARGO) test --locked --test issuance_log -- --ignored --exact \
		foreign::another_implementation_verifies_checkpoints_roots_and_proofs
	$(CARGO) test --locked --test dashboard -- --ignored
	$(CARGO) test --locked --test signing_path -- --ignored --exact outcomes::prometheus_takes_the_metrics_as_they_are

test-pkilint: ## leaves judged by pkilint, which is kept in a cache outside the tree
	@scripts/packages.sh --for pkilint
	$(CARGO) test --locked --test leaf
	@tests/pkilint.sh

test-deploy: packages ## chart, manifests, units, images and the guide; needs Go once (Helm, an API server), and root
	@scripts/packages.sh --for deploy
	$(CARGO) test --locked --test deploy -- --include-ignored

test-tokens: packages ## the token suite on SoftHSM, Kryoptic and NSS, and on two of them at once
	@tests/modules.sh
	$(CARGO) test --locked --test token_suite -- --include-ignored

test-kube: packages ## Kubernetes, by a real API server, which is built by Go first, once: ten minutes
	@scripts/packages.sh --for kube
	@tests/kube/api-server.sh etcd kube-apiserver kubectl >/dev/null
	$(CARGO) test --locked --test kube -- --ignored --skip scale:: --skip istio::

test-istio: packages ## Istio's own agent, registration authority and CA against ours; its code is built by Go first, once
	@scripts/packages.sh --for kube
	@tests/kube/api-server.sh etcd kube-apiserver kubectl >/dev/null
	@tests/istio/build.sh >/dev/null
	$(CARGO) test --locked --test kube -- --ignored istio::

test-long: packages ## what takes too long for every change, an hour of random faults among it
	@for part in browser deploy foreign kube; do scripts/packages.sh --for $$part || exit 1; done
	@tests/modules.sh
	@tests/kube/api-server.sh >/dev/null
	@tests/istio/build.sh >/dev/null
	SOAK_SECONDS=3600 STORM_AGENTS=10000 $(CARGO) test --locked --profile fast-tests --workspace --all-targets -- --include-ignored

faults: packages ## every return code at every PKCS#11 function, under load; writes docs/FAULTS.md; half an hour
	FAULTS_PAGE=write $(CARGO) test --locked --profile fast-tests --test fault_matrix -- --ignored --nocapture \
		every_code_at_every_function

check: packages dependencies ## format, lints, documentation, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --lib --bins --examples -- -D warnings
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings $(IN_TESTS)
	$(CARGO) doc --locked --workspace --no-deps --document-private-items
	@for script in .ci/run benches/*.sh scripts/*.sh softhsm/*.sh softhsm/softhsm-init deploy/*/*.sh tests/*.sh tests/kube/*.sh; do \
		bash -n $$script || exit 1; done

dependencies: ## licences, bans and sources of what the lock file names
	@.ci/dependencies

bench: packages ## the pure parts (criterion), then a daemon beside its parts and the speed goals, a slow token, a storm
	$(CARGO) bench --locked --workspace
	@benches/endpoint.sh
	@benches/delayed.sh
	@benches/storm.sh

format: ## format the sources
	$(CARGO) fmt --all

image: packages ## a container image (OCI layout) in target/image, without a registry
	@scripts/packages.sh --for deploy
	@rm -rf target/image && mkdir -p target/image
	@deploy/image/build.sh target/image/istio-hsm-ca

packages: ## install the distribution packages that are missing
	@scripts/packages.sh
