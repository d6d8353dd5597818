# Entry point for developers and CI. `make` lists the targets.

CARGO ?= cargo
export RUSTDOCFLAGS := -D warnings

# Tests fail by panicking, and their numbers are small.
IN_TESTS := $(addprefix -A clippy::,unwrap_used expect_used panic as_conversions cast_possible_truncation \
	cast_possible_wrap cast_sign_loss disallowed_methods type_complexity unwrap_in_result)

.PHONY: help deps demo run test test-foreign test-long fuzz faults check bench format dependencies test-browser \
	test-pkilint test-istio test-kube test-mesh test-mesh-short mesh test-deploy test-release test-tokens release image

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Groups of scripts/packages.sh, in addition to the packages of every build.
FOR ?=
# If packages are missing, fails with the command that installs them.
require = @scripts/packages.sh --check $(1)

deps: ## install missing packages; FOR='browser deploy foreign fuzz kube mesh pkilint release tokens' adds those of further targets
	@scripts/packages.sh $(FOR)

demo: deps ## issue a certificate with a SoftHSM token, one line per step; CACERTS=DIR uses your own CA
	@scripts/demo.sh

run: deps ## the same, and keep the daemon running
	@scripts/demo.sh --stay

test: ## run all tests, with SoftHSM
	$(call require)
	$(CARGO) test --locked --workspace --all-targets --no-fail-fast
	$(CARGO) test --locked --workspace --doc

test-browser: ## test the status page in a headless Chromium; screenshots in target/tmp/status-page
	$(call require,browser)
	$(CARGO) test --locked --test browser -- --ignored

test-foreign: ## the log by another implementation, chains and CRLs by Go, BoringSSL and Envoy, metrics and alert rules by promtool
	$(call require,foreign)
	$(CARGO) test --locked --package istio-hsm-ca-pki --test certificates -- --ignored agreement:: crl:: published_crls::
	$(CARGO) test --locked --test issuance_log -- --ignored --exact \
		foreign::another_implementation_verifies_checkpoints_roots_and_proofs
	$(CARGO) test --locked --test repository -- --ignored dashboard::
	$(CARGO) test --locked --test signing_path -- --ignored --exact outcomes::prometheus_takes_the_metrics_as_they_are

test-pkilint: ## check leaf and CA certificates and CRLs with pkilint, which is cached outside the tree
	$(call require,pkilint)
	$(CARGO) test --locked --package istio-hsm-ca-pki --test certificates -- leaf:: ceremony:: crl::
	@tests/pkilint.sh

test-deploy: ## test chart, manifests, units, images and the guide; needs root, and Go once (Helm, an API server)
	$(call require,deploy kube)
	$(CARGO) test --locked --test deploy -- --include-ignored --skip package::

test-release: ## build the release twice and compare; install, upgrade and remove its package; needs root and systemd
	$(call require,deploy release)
	$(CARGO) test --locked --test deploy package:: -- --ignored

test-tokens: ## run the token suite on each PKCS#11 module and on two at once, and the commands of hsm-config; needs root
	$(call require,tokens)
	@tests/modules.sh
	$(CARGO) test --locked --test token_host suite:: -- --include-ignored
	$(CARGO) test --locked --test cli adopt:: -- --include-ignored

test-kube: ## test with a real API server, which is first built with Go, once: ten minutes
	$(call require,kube)
	@tests/kube/api-server.sh etcd kube-apiserver kubectl >/dev/null
	@tests/kube/api-server.sh --newest kube-apiserver >/dev/null
	@tests/cert-manager/build.sh >/dev/null
	$(CARGO) test --locked --test kube -- --ignored --skip scale:: --skip istio:: --skip sidecar::

test-istio: ## test with Istio's own agent and istiod's code, which is first built with Go, once
	$(call require,kube)
	@tests/kube/api-server.sh etcd kube-apiserver kubectl >/dev/null
	@tests/kube/api-server.sh --newest kube-apiserver >/dev/null
	@tests/istio/build.sh >/dev/null
	@tests/istio/build.sh mesh >/dev/null
	$(CARGO) test --locked --test kube -- --ignored istio:: sidecar::

# The programs of a mesh, each built once.
mesh-programs = @tests/kube/api-server.sh etcd helm kube-apiserver kubectl >/dev/null && \
	tests/istio/build.sh mesh >/dev/null

test-mesh: ## test in a mesh: istiod, pilot-agent and Envoy under traffic; needs root; MESH_PAGE=write writes docs/MESH.md
	$(call require,kube mesh)
	$(mesh-programs)
	$(CARGO) build --locked --package istio-hsm-ca-bench
	@# Scenarios wait most of the time, so two for each processor run next to each other. Each takes a gigabyte of memory.
	$(CARGO) test --locked --test mesh -- --ignored --skip short:: --test-threads $$((2 * $$(nproc)))

test-mesh-short: ## a short form of scenarios 1 to 3 of that: migration, renewals, a new certificate and key; needs root
	$(call require,kube mesh)
	$(mesh-programs)
	$(CARGO) test --locked --test mesh -- --ignored short::

mesh: ## run that mesh until it is interrupted, and print where to look
	$(call require,kube mesh)
	$(mesh-programs)
	MESH_STAY=1 $(CARGO) test --locked --test mesh -- --ignored --exact --nocapture stays_until_interrupted

test-long: ## what takes too long for every change, an hour of random faults among it
	$(call require,browser deploy foreign fuzz kube mesh release tokens)
	@tests/modules.sh
	@tests/kube/api-server.sh >/dev/null
	@tests/kube/api-server.sh --newest kube-apiserver >/dev/null
	@tests/istio/build.sh >/dev/null
	$(mesh-programs)
	@tests/cert-manager/build.sh >/dev/null
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

check: dependencies ## check format, lints, documentation and dependencies
	$(call require)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --lib --bins --examples -- -D warnings
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings $(IN_TESTS)
	$(CARGO) doc --locked --workspace --no-deps --document-private-items
	@# The fuzzers are a package of their own: their lock file must have the dependencies of our crates.
	@$(CARGO) metadata --locked --manifest-path fuzz/Cargo.toml --format-version 1 >/dev/null
	@for script in .ci/run benches/*.sh scripts/*.sh softhsm/*.sh softhsm/softhsm-init deploy/*/*.sh tests/*.sh tests/*/*.sh; do \
		bash -n $$script || exit 1; done

dependencies: ## check licences, bans and sources of the packages in Cargo.lock
	@.ci/dependencies

bench: ## measure the pure parts (criterion), the daemon with the performance goals, a slow token, failing helper keys, a storm
	$(call require)
	$(CARGO) bench --locked --workspace
	@benches/endpoint.sh
	@benches/delayed.sh
	@benches/helpers.sh
	@benches/storm.sh

format: ## format the sources
	$(CARGO) fmt --all

release: ## build programs, Debian package, debug symbols and bill of materials, reproducibly, in target/dist
	$(call require,release)
	@scripts/release.sh

image: ## build a container image (OCI layout) in target/image, without a registry
	$(call require,deploy)
	@rm -rf target/image && mkdir -p target/image
	@deploy/image/build.sh target/image/istio-hsm-ca
