# xlft. The two commands of the README are "make demo" and "make test".

PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -X main.version=$(VERSION)
export PATH := $(CURDIR)/build/go/bin:$(PATH):/usr/local/go/bin

.PHONY: all help setup build build-xen build/xlft vet test test-quick test-go test-sim test-processes test-lab demo lab lab-campaign bench bench-model bench-lab fuzz xtf install clean

all: build-xen ## build xlft with libxl (the default)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS='	' read -r t w; do printf '  make %-12s %s\n' "$$t" "$$w"; done

setup: ## install compiler, libraries and tools that are missing (Debian, root)
	scripts/dev/setup

build: ## build without Xen, into build/noxen/
	mkdir -p build/noxen
	go build -o build/noxen/ ./...

build-xen: build/xlft ## build with libxl, as build/xlft; needs libxen-dev

# Go knows what is out of date.
build/xlft:
	scripts/dev/fetch-xenlight
	go build -tags xen -ldflags '$(LDFLAGS)' -o $@ ./xlft/cmd/xlft

vet: ## check format, vet, staticcheck
	scripts/dev/vet

test: ## run every test; without root it says what it skips
	scripts/dev/setup test
	scripts/dev/test

test-quick: ## every test but the lab
	scripts/dev/setup test
	scripts/dev/test quick

test-go: ## build, vet and the tests with the race detector
	scripts/dev/setup test
	scripts/dev/test go

test-sim: ## 10,000 simulated fault schedules
	scripts/dev/setup
	scripts/dev/test sim

test-processes: ## real processes on simulated hosts, two minutes (root); FOR=1h: longer, with SEED=N for the same faults
	scripts/dev/setup test
	$(if $(FOR),go test ./tests/processes -count=1 -v -timeout 0 -run TestProcesses -proc.for=$(FOR) $(if $(SEED),-proc.seed=$(SEED)),scripts/dev/test processes)

test-lab: ## the tests on two real Xen hosts under emulation (root)
	scripts/dev/setup test
	scripts/dev/test lab

demo: setup build-xen ## two Xen hosts, a protected domain, the primary killed, a client that goes on (root)
	go run ./tests/lab/cmd/demo

lab: setup build-xen ## two Xen hosts under emulation to play with (root)
	go run ./tests/lab/cmd/labctl up

lab-campaign: setup build-xen ## a seeded campaign of faults on two Xen hosts, five minutes; FOR=2h, SEED=N (root)
	scripts/dev/setup test
	XLFT_LAB_LONG=1 XLFT_LAB_REQUIRED=1 go test -tags lab -count=1 -v -timeout 0 -run 'TestCampaign$$' ./tests/lab/scenario -campaign.for=$(or $(FOR),5m) -scenario.seed=$(or $(SEED),0)

bench: ## print the table of measurements
	scripts/dev/setup test
	$(MAKE) build-xen
	scripts/dev/bench

bench-model: ## print what a model of real hosts and links gives (a few minutes)
	scripts/dev/setup test
	go run ./tests/model

bench-lab: setup build-xen ## compare unprotected, stock Remus and xlft on two Xen hosts: most of an hour; SHORT=1: a quarter (root)
	go run ./tests/lab/cmd/bench $(if $(SHORT),-short)

fuzz: ## fuzz every parser for 30 s each
	scripts/dev/fuzz

xtf: setup ## build the C test guests, into build/xtf/
	$(MAKE) -C tests/xtf

install: build-xen ## install into PREFIX (/usr/local) and /etc
	install -D -m 0755 build/xlft $(DESTDIR)$(PREFIX)/sbin/xlft
	install -D -m 0755 scripts/xl $(DESTDIR)$(PREFIX)/sbin/xl
	install -D -m 0644 conf/systemd/xlft@.service $(DESTDIR)/etc/systemd/system/xlft@.service
	install -D -m 0644 conf/systemd/xlft-keep@.service $(DESTDIR)/etc/systemd/system/xlft-keep@.service
	install -D -m 0644 conf/systemd/xlft-disk@.service $(DESTDIR)/etc/systemd/system/xlft-disk@.service
	install -D -m 0644 conf/systemd/xlft-verify@.service $(DESTDIR)/etc/systemd/system/xlft-verify@.service
	install -D -m 0644 conf/systemd/xlft-verify@.timer $(DESTDIR)/etc/systemd/system/xlft-verify@.timer
	install -D -m 0755 scripts/health-edac $(DESTDIR)$(PREFIX)/lib/xlft/health-edac
	install -D -m 0755 scripts/block-xlft $(DESTDIR)/etc/xen/scripts/block-xlft
	install -D -m 0644 conf/systemd/xlft-receiver.service $(DESTDIR)/etc/systemd/system/xlft-receiver.service
	install -D -m 0644 conf/systemd/xlft-drain.service $(DESTDIR)/etc/systemd/system/xlft-drain.service
	install -D -m 0644 conf/systemd/xlft-metrics.service $(DESTDIR)/etc/systemd/system/xlft-metrics.service
	install -D -m 0644 conf/systemd/xlft-metrics.timer $(DESTDIR)/etc/systemd/system/xlft-metrics.timer
	install -D -m 0644 conf/systemd/xlft-receiver.socket $(DESTDIR)/etc/systemd/system/xlft-receiver.socket
	install -D -m 0644 conf/modules-load.d/xlft.conf $(DESTDIR)/etc/modules-load.d/xlft.conf
	install -D -m 0644 conf/tmpfiles.d/xlft.conf $(DESTDIR)/etc/tmpfiles.d/xlft.conf
	install -D -m 0644 conf/xlft.toml $(DESTDIR)$(PREFIX)/share/doc/xlft/xlft.toml
	install -D -m 0644 scripts/completion.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/xlft
	go run -tags man -ldflags '$(LDFLAGS)' ./xlft/cmd/xlft man $(DESTDIR)$(PREFIX)/share/man/man8
	test -e $(DESTDIR)/etc/xlft/xlft.toml || install -d -m 0755 $(DESTDIR)/etc/xlft
	@echo "Now: cp $(PREFIX)/share/doc/xlft/xlft.toml /etc/xlft/, edit it, and see README.md."

clean: ## remove what was built
	rm -rf build go.work go.work.sum
