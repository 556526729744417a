# make help says what there is. Everything sets up what it needs: Debian's packages (as root), a .venv, the kernels
# of the guests.

CORE := $(wildcard src/*.[ch])
VENV := .venv
PYTHON := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Tests start Python some thousand times: whatever the caller says, it keeps what it has compiled.
unexport PYTHONDONTWRITEBYTECODE

# Each of these Debians is tested, its kernel in a guest and all the rest in a root of its own; a skip of what this machine
# should be able to do is a failure.
SUITES := bookworm trixie forky
export VHOSTNET_REQUIRE ?= native,tap,udev,qemu,machines,vhost,vlan,shaping,e2e,strace,setpriv,seccomp,systemd,netfilter,ovs,datapath,helper

.PHONY: help
help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' Makefile | expand -t 16

.PHONY: setup
setup: $(VENV)/made  ## Debian's packages, the .venv, the C core

$(VENV)/made: tools/setup pyproject.toml setup.py $(CORE) src/build_core.py
	tools/setup $(VENV)
	@touch $@

.PHONY: kernels
kernels:  ## the kernels of the guests, into the cache
	@for suite in $(SUITES) 'trixie arm64' 'bookworm s390x'; do tests/guest/fetch $$suite >/dev/null || exit; done

.PHONY: demo
demo: setup  ## the whole job on the XML this project was created for
	$(VENV)/bin/vhostnet demo

.PHONY: test
test: setup kernels  ## every test: on this kernel, and those of vhost-net in a guest on another: minutes
	tests/guest/all -m 'vhost or vlan or shaping or datapath' trixie & guest=$$!; tests/here; here=$$?; wait $$guest && exit $$here

.PHONY: test-here
test-here: setup kernels  ## the tests that need no guest of their own
	tests/here $(STREAMS)

MARKS ?=
.PHONY: guests
guests: setup kernels  ## the tests of the kernel and of vhost-net, in guests on Debian's kernels; those with MARKS alone
	tests/guest/all $(if $(MARKS),-m '$(MARKS)') $(SUITES)

.PHONY: distros
distros:  ## make demo and the tests that need no guest, in fresh roots of Debian 12, 13 and testing
	tests/distros $(SUITES)

FOLDERS ?=
.PHONY: test-arm64 test-s390x
test-arm64: setup dist/SHA256SUMS  ## the tests that need no QEMU on an emulated arm64, in Debian 13, with the wheel of make wheels; FOLDERS or files of tests/: minutes
	tests/arch/all trixie arm64 $(FOLDERS)

test-s390x: setup dist/SHA256SUMS  ## the same on an s390x, big-endian, in Debian 12
	tests/arch/all bookworm s390x $(FOLDERS)

.PHONY: check
check: setup  ## the tests that need neither root nor a device: seconds
	$(PYTHON) -m pytest -m "not tap and not qemu and not vhost and not vlan and not shaping and not datapath and not libvirt and not libvirtd and not ovs and not e2e and not slow"

ERRNOS ?=
.PHONY: test-faults
test-faults: setup kernels  ## every kernel call refused with every errno, or ERRNOS, and killed at; vhost-net's in a guest: minutes
	tests/faults/all $(ERRNOS)

.PHONY: test-libvirt
test-libvirt: setup kernels  ## libvirt's own test suite, and real libvirts on three Debians: arguments, TAPs, refusals: minutes
	tests/libvirt/fetch >/dev/null
	VHOSTNET_REQUIRE=libvirt $(PYTHON) -m pytest tests/libvirt/test_suite.py
	tests/libvirt/all $(SUITES)

.PHONY: test-daemons
test-daemons:  ## what the daemons of three Debians do to NICs, with examples/host/ and without: a minute each
	@for suite in $(SUITES); do \
		echo "== $$suite"; \
		tools/inside $$suite --once "$$(cat tests/daemons/packages)" -- python3 -m tests.daemons || exit; \
	done

.PHONY: torture
torture: setup  ## races, crashes and a soak, and what they came to: minutes
	$(PYTHON) -m tests.torture

FUZZ_SECONDS ?= 300
.PHONY: fuzz
fuzz: $(VENV)/fuzz  ## fuzzers of the text, the netlink answers and whole Programs, FUZZ_SECONDS each, side by side
	tests/fuzz/run $(FUZZ_SECONDS)

$(VENV)/fuzz $(VENV)/valgrind $(VENV)/chromium: $(VENV)/made
	tools/setup $(VENV) $(@F)
	@touch $@

.PHONY: sanitize
sanitize: $(VENV)/valgrind  ## the tests with the C core under ASan, UBSan and LSan, and some under valgrind
	tools/sanitize
	tools/valgrind

.PHONY: coverage
coverage: setup kernels  ## which lines the tests run, of the library and of the C core: at least 95 % of each
	tools/coverage trixie

.PHONY: pythons
pythons: setup dist/SHA256SUMS  ## the wheel under every Python this machine has, and the tests there
	tools/pythons

C := $(filter-out src/_vhostnet.h,$(CORE)) bench/floor.c tests/faults/shim.c tools/defects.h tools/glibc217.c $(wildcard tests/fuzz/*.[ch])
STRICT := $(CC) -std=gnu11 -O2 -Wall -Wextra -Wconversion -Werror
.PHONY: lint
lint: setup  ## ruff, mypy --strict, clang-format, and C with every warning an error
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(C)
	for room in $(filter %.c,$(CORE)); do $(STRICT) -fanalyzer -c -o /dev/null $$room || exit; done
	$(STRICT) -fsyntax-only bench/floor.c
	$(STRICT) -fsyntax-only tests/faults/shim.c
	$(STRICT) -fsyntax-only tools/glibc217.c

.PHONY: docs docs-look
docs: $(VENV)/docs  ## README, docs/ and the docstrings as a site, build/site/; what leads nowhere, or is left out, is an error
	rm -rf build/site
	$(PYTHON) -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs/site . build/site
	$(PYTHON) tools/links.py build/site

docs-look: docs $(VENV)/chromium  ## the site in Chromium (Debian's, 300 MB), as wide as a phone and a desk; pictures: build/look/
	$(PYTHON) tools/look.py build/site build/look

$(VENV)/docs: $(VENV)/made
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

.PHONY: bench bench-quick bench-macs bench-libvirt figures
bench: setup  ## how long everything takes, with and without udev, against everybody else (bench/README.md): minutes
	$(PYTHON) -m bench.run

bench-quick: setup  ## the same with few rounds, without the long cases: under a minute
	$(PYTHON) -m bench.run --quick

NICS ?= 20000
bench-macs: setup  ## how many of NICS NICs have another MAC when udev is done; with SUITE=trixie by that Debian's udevd
	$(PYTHON) -m bench.macs --nics $(NICS) $(SUITE:%=--suite %)

bench-libvirt: setup  ## from the command to a QEMU that answers: Debian 13's libvirt against vhostnet exec: minutes
	$(PYTHON) -m bench.libvirt

figures: $(VENV)/plots  ## the newest results of all these into docs/: JSON, plots, the tables of performance.md and README
	$(PYTHON) -m bench.figures

$(VENV)/plots: $(VENV)/made
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

WHEELS := $(VENV)/wheels
.PHONY: wheels
wheels: $(WHEELS)/made  ## the sdist and the wheels, dist/: of glibc and musl, x86-64, arm64, s390x; twice, inspected, tried
	$(WHEELS)/bin/python tools/wheels.py

# For whoever wants them as they are here: made once for all.
dist/SHA256SUMS: $(wildcard $(shell git ls-files 2>/dev/null))
	$(MAKE) wheels

.PHONY: wheels-bare
wheels-bare: dist/SHA256SUMS  ## what pip makes of them in roots of Debian 12, 13 and testing that have no compiler: a NIC, make demo's job
	@for suite in $(SUITES); do \
		tar c -C dist . | tools/inside $$suite --once "$$(cat tests/dist/packages)" -- tests/dist/try || exit; \
	done

.PHONY: wheels-musl
wheels-musl: dist/SHA256SUMS  ## the wheel for musl, and the tests on it, by a CPython that is made for musl: 5 minutes
	@tar c -C dist . | tools/inside bookworm --once "$$(cat tests/dist/musl)" -- tests/dist/try-musl

$(WHEELS)/made: $(VENV)/made
	$(PYTHON) -m venv $(WHEELS)
	$(WHEELS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(WHEELS)/bin/python -m pip install --quiet --disable-pip-version-check --group wheels
	@touch $@

.PHONY: deb
deb:  ## Debian's packages into build/deb/, from a root of Debian 13; lintian, the demo and a purge in a bare one: 2 minutes
	tools/deb

.PHONY: release
release: $(VENV)/release  ## whether this commit can be released, and all of it into dist/ (docs/releasing.md); publishes nothing
	tools/release

$(VENV)/release: $(VENV)/made
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[release]'
	@touch $@

.PHONY: clean
clean:  ## what was built here; not the cache of kernels
	rm -rf $(VENV) .fuzz build dist *.egg-info vhostnet/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
