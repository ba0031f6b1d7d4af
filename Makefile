# xlft. The two commands of the README are "make demo" and "make test".

PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  = -X main.version=$(VERSION)
export PATH := $(CURDIR)/build/go/bin:$(PATH):/usr/local/go/bin

.PHONY: all build build-xen vet test test-go test-lab test-sim demo bench fuzz xtf lab install clean setup

all: build-xen

# Installs what is missing of compiler, libraries and tools (Debian, root).
setup:
	scripts/setup

build:
	go build -o build/nox/ ./...

# The real thing, with libxl. Needs libxen-dev; "make setup" installs it.
build-xen: build/xlft

# Go knows what is out of date.
.PHONY: build/xlft
build/xlft:
	scripts/fetch-xenlight
	go build -tags xen -ldflags '$(LDFLAGS)' -o $@ ./xlft/cmd/xlft

vet:
	scripts/vet

test:
	scripts/setup test
	scripts/test

demo: setup build-xen
	go run ./tests/lab/cmd/demo

bench:
	scripts/setup test
	$(MAKE) build-xen
	scripts/bench

fuzz:
	scripts/fuzz

xtf: setup
	$(MAKE) -C tests/xtf

install: build-xen
	install -D -m 0755 build/xlft $(DESTDIR)$(PREFIX)/sbin/xlft
	install -D -m 0755 scripts/xl $(DESTDIR)$(PREFIX)/sbin/xl
	install -D -m 0644 conf/systemd/xlft@.service $(DESTDIR)/etc/systemd/system/xlft@.service
	install -D -m 0644 conf/systemd/xlft-disk@.service $(DESTDIR)/etc/systemd/system/xlft-disk@.service
	install -D -m 0755 scripts/block-xlft $(DESTDIR)/etc/xen/scripts/block-xlft
	install -D -m 0644 conf/systemd/xlft-receiver.service $(DESTDIR)/etc/systemd/system/xlft-receiver.service
	install -D -m 0644 conf/systemd/xlft-receiver.socket $(DESTDIR)/etc/systemd/system/xlft-receiver.socket
	install -D -m 0644 conf/modules-load.d/xlft.conf $(DESTDIR)/etc/modules-load.d/xlft.conf
	install -D -m 0644 conf/tmpfiles.d/xlft.conf $(DESTDIR)/etc/tmpfiles.d/xlft.conf
	install -D -m 0644 conf/xlft.toml $(DESTDIR)$(PREFIX)/share/doc/xlft/xlft.toml
	install -D -m 0644 scripts/completion.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/xlft
	build/xlft man $(DESTDIR)$(PREFIX)/share/man/man8
	test -e $(DESTDIR)/etc/xlft/xlft.toml || install -d -m 0755 $(DESTDIR)/etc/xlft
	@echo "Now: cp $(PREFIX)/share/doc/xlft/xlft.toml /etc/xlft/, edit it, and see README.md."

clean:
	rm -rf build go.work go.work.sum
