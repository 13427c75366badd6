# Needs: make, a POSIX shell, git, and CPython 3.11 to 3.13 with venv. Everything else is installed into .venv from the
# locks in requirements/ and package-lock.json. Once installed, no target here touches the network but lock and peers.

.POSIX:

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
# Progress on a terminal, silence in a pipe.
PIP = PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install `test -t 1 || echo --quiet`
VENDOR = navsrv/display/static/vendor
VENDOR_STAMP = $(VENV)/.vendor
# What uv needs is one wheel; it is pinned here because it is what makes the locks.
UV_VERSION = 0.13.8
UPGRADE =
COMPILE = .lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header

.PHONY: help install demo test check format campaign coverage fuzz-wire soak verdict peers lock wheel clean distclean

help:
	@echo 'make demo    install what it needs into .venv, then run the whole job on simulators with the browser display'
	@echo 'make test    install what it needs, then everything that CI runs: make check and pytest (ARGS=... goes to pytest)'
	@echo 'make check   the static part: ruff format and lint, mypy --strict, import-linter'
	@echo 'make format  let ruff format and mend what it can'
	@echo 'make campaign  ten thousand simulated insertions (writes docs/campaign.md)'
	@echo 'make coverage  how often the lower bounds hold, over thousands of trials (writes docs/coverage.md)'
	@echo 'make fuzz-wire  a million mutated messages against the OpenIGTLink codec'
	@echo 'make soak    an hour of the real server at 1000 Hz, its memory into docs/soak.md'
	@echo 'make verdict  held-out trials of the verdict on X-ray registrations (writes docs/verdict.md; SECONDS=3600)'
	@echo 'make peers   install the independent peers that some tests speak to (Debian packages; needs root)'
	@echo 'make wheel   build dist/navsrv-*.whl'
	@echo 'make lock    make the locks again from pyproject.toml (make lock UPGRADE=--upgrade for newer versions)'
	@echo 'make clean   remove what building and testing left; make distclean also .venv and the fetched JavaScript'
	@echo 'PYTHON=python3.12 chooses the interpreter of .venv'

install: $(VENV)/.runtime $(VENDOR_STAMP)

demo: install
	$(BIN)/navsrv demo $(ARGS)

test: check
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev $(VENDOR_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# A quarter of an hour on two cores: alarms against the truth; goes on where it was cut off.
campaign: $(VENV)/.dev
	$(BIN)/navsrv campaign examples/campaign.toml --workers 2 --out .campaign --resume --report docs/campaign.md

# Some minutes: calibrations, registrations and approaches by the thousand; not part of make test.
coverage: $(VENV)/.dev
	$(BIN)/python -m simulators.coverage --report docs/coverage.md

# Half a minute: a million mutated messages; not part of make test.
fuzz-wire: $(VENV)/.dev
	$(BIN)/python -W error tests/fuzz_wire.py --count 1000000

# An hour: the real server at 1000 Hz, and whether its processes keep their size.
soak: install
	$(BIN)/python -m simulators.bench.soak --report docs/soak.md $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Held-out trials of the verdict on X-ray registrations: resumable, for as long as SECONDS say.
SECONDS ?= 3600
VERDICT_TRIALS ?= .verdict/trials.jsonl
verdict: $(VENV)/.dev
	mkdir -p $(dir $(VERDICT_TRIALS))
	$(BIN)/python -m simulators.verdict run --set held-out --out $(VERDICT_TRIALS) --seconds $(SECONDS)
	$(BIN)/python -m simulators.verdict report $(VERDICT_TRIALS) --markdown docs/verdict.md

peers:
	sh tools/peers.sh

wheel: $(VENV)/.dev $(VENDOR_STAMP)
	$(BIN)/python -m hatchling build -t wheel

# Build tools go first and nothing is built in isolation, since crcmod is published as source only and a build in
# isolation would fetch tools that no lock pins.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "navsrv needs CPython 3.11 to 3.13; $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.build: $(BIN)/python requirements/build.txt
	$(PIP) --require-hashes -r requirements/build.txt
	touch $@

$(VENV)/.runtime: $(VENV)/.build requirements/runtime.txt pyproject.toml
	@echo 'installing navsrv and what it needs into $(VENV) (about 1.5 GB)'
	$(PIP) --no-build-isolation --require-hashes -r requirements/runtime.txt
	$(PIP) --no-build-isolation --no-deps --no-index -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	@echo 'installing the tools of make check and make test into $(VENV)'
	$(PIP) --no-build-isolation --require-hashes -r requirements/dev.txt
	touch $@

$(VENDOR_STAMP): $(VENV)/.build package.json package-lock.json requirements/node.txt tools/vendor_display.py
	$(BIN)/python tools/vendor_display.py
	touch $@

# dev.txt is the whole set; the others are subsets of it, held to the same versions. Pins stay unless UPGRADE is given.
# Alone in using uv, which is no part of any lock: it neither runs nor is installed for users or CI.
lock: .lock/bin/uv
	$(COMPILE) pyproject.toml --group dev -o requirements/dev.txt $(UPGRADE)
	$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/runtime.txt
	$(COMPILE) --group build -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) --group node -c requirements/dev.txt -o requirements/node.txt
	npm install --package-lock-only --ignore-scripts

.lock/bin/uv:
	$(PYTHON) -m venv .lock
	.lock/bin/pip install --quiet uv==$(UV_VERSION)

clean:
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find navsrv devices calibration simulators tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .lock .peers $(VENDOR)
