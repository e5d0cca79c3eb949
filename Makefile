# msb-fs: `make` alone says what there is.
.DEFAULT_GOAL := help
SHELL := /bin/sh
GO ?= go
export CGO_ENABLED ?= 0
STATIC := -trimpath -ldflags "-s -w"

.PHONY: help
help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'

.PHONY: build
build: ## build bin/msb-fs and bin/msb-launch, static
	$(GO) build $(STATIC) -o vmboot/agentbin/msb-agent ./cmd/msb-agent
	$(GO) build $(STATIC) -o bin/ ./cmd/msb-fs ./cmd/msb-launch

.PHONY: deps
deps: ## install what demo and tests need (Debian 12; as root or by sudo)
	scripts/install-deps

.PHONY: demo
demo: deps build kernel ## start a microVM from an image that has not been pulled; IMAGE=... CMD='...' for a real registry
	$(GO) run ./internal/demo -image "$(IMAGE)" -command "$(CMD)" $(DEMOFLAGS)

.PHONY: kernel
kernel: build ## get the guest kernel, once
	@bin/msb-launch setup

.PHONY: test
test: deps build kernel ## all tests, with what they need installed
	scripts/test

.PHONY: test-long
test-long: deps build kernel ## what takes too long for every change: races, kills, crowds, workloads in real images (half an hour)
	MSB_PGBENCH_SECONDS=$${MSB_PGBENCH_SECONDS:-60} $(GO) test -tags long -count 1 -timeout 60m -v -run 'Odd|Twenty|Racing|Kills|Gigabyte|Stalled|FullUpper|Secrets|Workloads|Redis|Nginx|Apt|SQLite|PostgreSQL' ./internal/e2e

.PHONY: generate
generate: ## compile trace's eBPF programs again; needs clang-14, llvm-14 and libbpf-dev
	$(GO) generate ./trace/bpf

.PHONY: lint
lint: ## gofmt, go vet and golangci-lint
	scripts/lint

# The results directory: one a day, which a later `make bench` goes on with.
RESULTS ?= bench/results/$(shell hostname)-$(shell date -u +%F)

.PHONY: soak
soak: deps build kernel ## start and end machines MSB_SOAK (500) times in a row: power-off, reboot, kill
	MSB_SOAK=$${MSB_SOAK:-500} $(GO) test -count=1 -timeout 3h -v -run 'EndsInARow|ManyFrontends' ./vmboot ./vmboot/virtiofs

.PHONY: soak-crash
soak-crash: deps build ## kill the daemon under load MSB_CRASHES (200) times and check the cache after each
	MSB_CRASHES=$${MSB_CRASHES:-200} $(GO) test -count=1 -timeout 2h -v -run DaemonKilledAtRandom ./internal/e2e

.PHONY: soak-cow
soak-cow: deps ## about an hour of random writes to writable mounts: a file against a model, trees against overlayfs, kills at every step, crowds
	$(GO) test ./cow -count 1 -timeout 180m -v -run 'TestDeepTree|TestCrowdedDirectory|TestManyFiles' -crowd.entries 1000000 -crowd.files $${MSB_FILES:-10000000}
	$(GO) test ./cow -count 1 -timeout 180m -run 'TestFsx|TestInPlace|TestAgainstOverlayfs|TestKillAtEveryStep' -fsx.ops 200000 -fsx.seed $$(date +%s) -rapid.checks 500

.PHONY: soak-mounts
soak-mounts: deps build ## MSB_STRESS (300) seconds of stress-ng against a writable mount and twenty crowds of a hundred mounts, on one processor and on all
	for p in 1 $$(nproc); do GOMAXPROCS=$$p MSB_STRESS=$${MSB_STRESS:-300} $(GO) test -count=1 -timeout 1h -run '^TestStressors$$' ./internal/e2e && \
		GOMAXPROCS=$$p $(GO) test -count=20 -timeout 1h -run '^TestCrowdOfMounts$$' ./internal/e2e && GOMAXPROCS=$$p $(GO) test -count=5 -timeout 1h ./fs || exit 1; done

.PHONY: soak-oracle
soak-oracle: deps ## for MSB_SOAK_SECONDS (3600), compare random layers in every form with their tar, and merged images with umoci's
	end=$$(($$(date +%s) + $${MSB_SOAK_SECONDS:-3600})); while [ $$(date +%s) -lt $$end ]; do \
		$(GO) test -count=1 -timeout 1h -run '^(TestRapid|TestUmociGenerated)$$' ./layer ./fs -args -rapid.checks=500 || exit 1; done

.PHONY: bench-boot
bench-boot: deps build kernel ## time sandboxes, with and without a pool, beside a hello from an initramfs
	$(GO) test -count=1 -run '^$$' -bench Boot -benchtime 12x -v ./vmboot

.PHONY: bench
bench: deps build kernel ## measure cold starts beside what people use today; BENCHFLAGS='--image REF' for any image
	$(GO) run ./bench setup
	$(GO) run ./bench run --out $(RESULTS) $(BENCHFLAGS)

.PHONY: bench-quick
bench-quick: deps build kernel ## check in a few minutes that cold starts have not become slower
	$(GO) run ./bench quick

.PHONY: bench-readme
bench-readme: ## put the table of RESULTS into README.md
	$(GO) run ./bench report $(RESULTS)
	$(GO) run ./bench readme $(RESULTS)

.PHONY: clean
clean: ## remove what was built here; images and kernels in caches stay
	rm -rf bin vmboot/agentbin/msb-agent
