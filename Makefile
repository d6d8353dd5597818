# The one door: people and CI run the same targets. `make` alone lists them.

CARGO ?= cargo
export RUSTDOCFLAGS := -D warnings

# A test fails by panicking, and counts with numbers of its own making.
IN_TESTS := $(addprefix -A clippy::,unwrap_used expect_used panic as_conversions cast_possible_truncation \
	cast_possible_wrap cast_sign_loss disallowed_methods type_complexity unwrap_in_result)

.PHONY: help deps demo run test test-foreign test-long fuzz faults check bench format dependencies test-browser \
	test-pkilint test-istio test-kube test-deploy test-tokens image

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Groups of scripts/packages.sh, besides what every build needs.
FOR ?=
# Fails with the command to run when packages are missing.
require = @scripts/packages.sh --check $(1)

deps: ## install missing packages; FOR='browser deploy foreign fuzz kube pkilint tokens' adds those of further targets
	@scripts/packages.sh $(FOR)

demo: deps ## from nothing to a certificate out of a SoftHSM token, each step in a line; CACERTS=DIR for your own CA
	@scripts/demo.sh

run: deps ## the same, and the daemon stays up
	@scripts/demo.sh --stay

test: ## every test, with SoftHSM
	$(call require)
	$(CARGO) test --locked --workspace --all-targets --no-fail-fast
	$(CARGO) test --locked --workspace --doc

test-browser: ## the status page in a headless Chromium; pictures in target/tmp/status-page
	$(call require,browser)
	$(CARGO) test --locked --test browser -- --ignored

test-foreign: ## the log by another implementation, chains by Go and BoringSSL, metrics and alert rules by promtool
	$(call require,foreign)
	$(CARGO) test --locked --package istio-hsm-ca-pki --test certificates -- --ignored agreement::
	$(CARGO) test --locked --test issuance_log -- --ignored --exact \
		foreign::another_implementation_verifies_checkpoints_roots_and_proofs
	$(CARGO) test --locked --test repository -- --ignored dashboard::
	$(CARGO) test --locked --test signing_path -- --ignored --exact outcomes::prometheus_takes_the_metrics_as_they_are

test-pkilint: ## leaves judged by pkilint, which is kept in a cache outside the tree
	$(call require,pkilint)
	$(CARGO) test --locked --package istio-hsm-ca-pki --test certificates leaf::
	@tests/pkilint.sh

test-deploy: ## chart, manifests, units, images and the guide; needs Go once (Helm, an API server), and root
	$(call require,deploy kube)
	$(CARGO) test --locked --test deploy -- --include-ignored

test-tokens: ## the token suite on SoftHSM, Kryoptic, NSS, a TPM and p11-kit, and on two of them at once
	$(call require,tokens)
	@tests/modules.sh
	$(CARGO) test --locked --test token_host suite:: -- --include-ignored
	$(CARGO) test --locked --test cli adopt:: -- --include-ignored

test-kube: ## Kubernetes, by a real API server, which is built by Go first, once: ten minutes
	$(call require,kube)
	@tests/kube/api-server.sh etcd kube-apiserver kubectl >/dev/null
	$(CARGO) test --locked --test kube -- --ignored --skip scale:: --skip istio::

test-istio: ## Istio's own agent, registration authority and CA against ours; its code is built by Go first, once
	$(call require,kube)
	@tests/kube/api-server.sh etcd kube-apiserver kubectl >/dev/null
	@tests/istio/build.sh >/dev/null
	$(CARGO) test --locked --test kube -- --ignored istio::

test-long: ## what takes too long for every change, an hour of random faults among it
	$(call require,browser deploy foreign fuzz kube tokens)
	@tests/modules.sh
	@tests/kube/api-server.sh >/dev/null
	@tests/istio/build.sh >/dev/null
	SOAK_SECONDS=3600 STORM_AGENTS=10000 $(CARGO) test --locked --profile fast-tests --workspace --all-targets -- --include-ignored

	@scripts/fuzz.sh 300

FUZZ_SECONDS ?= 60
fuzz: ## coverage-guided fuzzing of what reads input from outside; FUZZ_SECONDS=60 for each target
	$(call require,fuzz)
	@scripts/fuzz.sh $(FUZZ_SECONDS)

faults: ## every return code at every PKCS#11 function, under load; writes docs/FAULTS.md; half an hour
	$(call require)
	FAULTS_PAGE=write $(CARGO) test --locked --profile fast-tests --test fault_matrix -- --ignored --nocapture \
		every_code_at_every_function

check: dependencies ## format, lints, documentation, dependencies
	$(call require)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --lib --bins --examples -- -D warnings
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings $(IN_TESTS)
	$(CARGO) doc --locked --workspace --no-deps --document-private-items
	@for script in .ci/run benches/*.sh scripts/*.sh softhsm/*.sh softhsm/softhsm-init deploy/*/*.sh tests/*.sh tests/kube/*.sh; do \
		bash -n $$script || exit 1; done

dependencies: ## licences, bans and sources of what the lock file names
	@.ci/dependencies

bench: ## the pure parts (criterion), then a daemon beside its parts and the speed goals, a slow token, a storm
	$(call require)
	$(CARGO) bench --locked --workspace
	@benches/endpoint.sh
	@benches/delayed.sh
	@benches/storm.sh

format: ## format the sources
	$(CARGO) fmt --all

image: ## a container image (OCI layout) in target/image, without a registry
	$(call require,deploy)
	@rm -rf target/image && mkdir -p target/image
	@deploy/image/build.sh target/image/istio-hsm-ca
