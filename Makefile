# What a user and CI run. `make run` on a fresh Debian machine with Rust ends with a running sandbox.
# The local node and its tests make namespaces, mounts and cgroups: they need root.

CTL := target/release/fsb-ctl
CARGO ?= cargo
SCENARIO ?= start
# What the bench compares with and Debian does not have.
PEERS := target/peers
# Suites of Debian whose kernels the tests boot: 6.1 and 6.12. FSB_TEST_VM=off leaves them out.
KERNELS := bookworm trixie

.PHONY: help setup build run stop test test-vm bench lint

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing from Debian's packages; no Rust
	@scripts/setup busybox-static ca-certificates gcc iproute2 libc6-dev make nftables util-linux

build: ## build all programs into target/release
	@echo "building: the first time takes about 8 minutes on 2 cores, later only what has changed"
	@$(CARGO) build --release --workspace

run: setup build ## start the local node and a first sandbox
	@scripts/first-run $(CTL)

stop: ## stop the local node and remove all that it made
	@$(CTL) local down --purge

# Images are made while cargo builds; guests run alone, since tests measure times.
test: setup setup-vm ## run every test, those that need root too, and test-vm
	@bench/vm/image $(KERNELS) & $(MAKE) build && $(CARGO) test --release --workspace; status=$$?; wait; exit $$status
	bench/vm/test $(KERNELS)

test-vm: setup setup-vm ## run the essential tests on the kernels of Debian 12 and 13, in emulated machines with cgroup v2
	@bench/vm/image $(KERNELS) & $(MAKE) build; status=$$?; wait; exit $$status
	bench/vm/test $(KERNELS)

setup-vm:
	@[ "$$FSB_TEST_VM" = off ] || scripts/setup cpio e2fsprogs mmdebstrap qemu-system-x86

bench: build $(PEERS)/bin/youki ## measure starts beside fork+exec, bwrap, crun, runc, youki and containerd; SCENARIO="all --json DIR" for all there is
	@scripts/setup bubblewrap containerd crun runc util-linux
	PATH="$(CURDIR)/$(PEERS)/bin:$$PATH" target/release/fsb-bench $(SCENARIO)

# Debian has no package of it. Where it cannot be had, the bench says that it is missing.
$(PEERS)/bin/youki:
	@scripts/setup libseccomp-dev pkg-config
	@echo "building youki to compare with: about 4 minutes, once"
	@$(CARGO) install --quiet --locked --root $(PEERS) --no-default-features --features v1,v2,seccomp youki@0.7.0 \
	|| echo "youki could not be built, it is left out"

lint: ## check format, lints and, if cargo-deny is installed, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies are not checked"; fi
