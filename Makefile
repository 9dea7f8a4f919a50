# Everything that is done to this project by command; `make` alone says what there is.
#
#     make demo PYTHON=/usr/bin/python3     another interpreter
#     make pytest ARGS="-k cli -x"          arguments for the tool of a single step
#
# Steps need nothing prepared: each makes what it lacks, and a second run finds it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The steps of `make test` are a sequence, each with the whole machine to itself.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

VENV := .venv
# The oldest paramiko that is supported, beside the newest in $(VENV).
LOWEST := .venv-lowest
LOWEST_PARAMIKO := 3.5.1
# What is tested with, to the byte: each version with its hashes. `make lock` renews it.
LOCK := .ci/requirements.txt
LOWEST_LOCK := .ci/requirements-lowest.txt
# The newest Python that is here, if it is newer than that of $(VENV).
NEWEST := .venv-newest
NEWEST_PYTHON = $(shell .ci/find-newest-python)
BIN := $(VENV)/bin
STEP := @.ci/step
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP_INSTALL) --require-hashes -r
ARGS :=
MINUTES := 1
SECONDS := 60
export PYTHON

SOURCES := setup.py pyproject.toml $(wildcard src/pump/*)
# What does not touch paramiko's own API need not run again on the oldest one.
NOT_LOWEST := addresses aio audit bench broker_* cli cli_others cli_visitors config \
    connection_machine engine_memory fairness stream_properties \
    faults_process forwards gateway_command gateway_config halfclose handlers hostkeys \
    interop_* layers openssh_* package policy profile* promises proxy_protocol pump_* \
    run_command scale security_* socks status* stream style supervisor* tunnel_rules \
    tunnel_services watch window windows wire x2go_*
# A new Python changes what is compiled, too.
NOT_NEWEST := $(filter-out aio pump_% stream socks,$(NOT_LOWEST)) cves hostile_*
# For every Python that is supported, and without a word of where it runs.
UV_COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
    --generate-hashes --no-annotate --no-header
# What limits or reads the address space, of which sanitizers take terabytes; PAM, which
# frees what python-pam takes from libc past AddressSanitizer; and what measures.
NOT_SANITIZED := engine_memory security_memory broker_login bench security_timing
# In CI, what leads the C through most of its states runs under sanitizers.
SANITIZED_SHORT := channel connection connection_machine cves halfclose \
    hostile_channels hostile_floods hostile_packets hostile_rekey hostile_windows \
    pump_* rekey sftp_client stream stream_properties tunnel_contract
SANITIZED := build/sanitize
CTEST_JOBS = -j$$(nproc) --output-sync=target
# The tests wait more than they work: more processes than cores. tests/conftest.py says
# what stays together on one of them. One that crashed is not replaced: the file that
# it ran would crash the next one, too.
PARALLEL := -n 4 --max-worker-restart 0 -p no:benchmark
# Which files of tests `make` leaves out, by their names in the list behind it.
leave_out = $(patsubst %,--ignore-glob="*/test_%.py",$(1))
# What cannot be tested here, whatever is installed; in CI there is nothing of it.
LEFT_OUT = $(shell .ci/prepare left-out)
# A virtual environment dies with the interpreter that it was made from.
ifeq ($(shell test -e $(VENV)/.made && ! $(BIN)/python -c "" 2>/dev/null && echo 1),1)
    $(shell rm -f $(VENV)/.made)
endif

.PHONY: help
help: ## say what there is
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | \
	    while IFS='|' read -r name text; do printf '  %-14s %s\n' "$$name" "$$text"; done

.PHONY: demo
demo: build ## set everything up, then show a reverse tunnel at work
	@$(BIN)/rtunnel demo $(ARGS)

.PHONY: test
test: ## set everything up, then check everything: what CI runs
	$(STEP) "make test" $(MAKE) checks

.PHONY: checks
checks: environments lint typecheck ctest pytest pytest-lowest \
    pytest-newest sanitize-short fuzz audit

# Side by side: pip keeps one core busy.
.PHONY: environments
environments: | system-test
	@if [ -n "$(NEWEST_PYTHON)" ]; then $(MAKE) $(NEWEST)/.packages & fi; \
	$(MAKE) $(VENV)/.dev || failed=1; wait $$! && [ -z "$$failed" ]

# -- single steps ----------------------------------------------------------------------

.PHONY: build
build: $(VENV)/.built ## make .venv with rtunnel compiled and installed in it

.PHONY: lint
lint: $(VENV)/.dev ## ruff: rules and format
	$(STEP) "lint (ruff)" sh -c '$(BIN)/ruff check . && $(BIN)/ruff format --check .'

.PHONY: typecheck
typecheck: $(VENV)/.dev ## mypy --strict, and the stubs of the compiled modules
	$(STEP) "types (mypy --strict)" $(BIN)/mypy
	$(STEP) "stubs of the compiled modules (stubtest)" $(BIN)/python -m mypy.stubtest \
	    --allowlist .ci/stubtest-allowlist rtunnel._engine rtunnel._pump

.PHONY: ctest
ctest: | system-test ## the C files alone, under ASan and UBSan, then ThreadSanitizer
	$(STEP) "C tests (ASan, UBSan)" $(MAKE) -C tests/c $(CTEST_JOBS)
	$(STEP) "C tests of threads (ThreadSanitizer)" $(MAKE) -C tests/c tsan

.PHONY: pytest
pytest: $(VENV)/.dev | system-test ## the tests, on the newest paramiko
	$(STEP) "tests, newest paramiko$(if $(LEFT_OUT), without $(LEFT_OUT))" \
	    $(BIN)/python -m pytest -q $(PARALLEL) $(LEFT_OUT:%=--deselect=%) $(ARGS)

.PHONY: pytest-lowest
pytest-lowest: $(LOWEST)/.dev | system-test ## the tests, on the oldest paramiko supported
	$(STEP) "tests, paramiko $(LOWEST_PARAMIKO)" $(LOWEST)/bin/python -m pytest -q $(PARALLEL) \
	    $(call leave_out,$(NOT_LOWEST)) $(ARGS)

.PHONY: pytest-newest
pytest-newest: | system-test ## the tests, on the newest Python that is here
	@if [ -n "$(NEWEST_PYTHON)" ]; then $(MAKE) pytest-newest-here; else \
	    printf '\n==> tests, newest Python: there is none newer than that of $(VENV)\n'; fi

.PHONY: pytest-newest-here
pytest-newest-here: $(NEWEST)/.dev | system-test
	$(STEP) "tests, $$($(NEWEST)/bin/python --version)" \
	    $(NEWEST)/bin/python -m pytest -q $(PARALLEL) \
	    $(call leave_out,$(NOT_NEWEST)) $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.dev | system-test ## what nobody has thought of: SECONDS=60 a fuzzer
	$(STEP) "fuzzers, compiled" $(MAKE) -C tests/fuzz
	$(STEP) "fuzzers, $(SECONDS) s each" $(BIN)/python -m tests.fuzz \
	    --seconds $(SECONDS) $(ARGS)

.PHONY: valgrind
valgrind: | system-test ## the C tests without sanitizers, under Valgrind
	$(STEP) "C tests (Valgrind)" $(MAKE) -C tests/c valgrind

.PHONY: sanitize
sanitize: sanitizer-env ## the tests under ASan, UBSan and LSan, live objects counted
	$(STEP) "tests under sanitizers" sh -c 'cd $(SANITIZED)/tree && \
	    ../venv/bin/python -m pytest -q $(PARALLEL) \
	    $(call leave_out,$(NOT_SANITIZED)) $(LEFT_OUT:%=--deselect=%) $(ARGS)'
	$(STEP) "reports of the sanitizers" .ci/sanitizer-reports $(SANITIZED)/reports

.PHONY: sanitize-short
sanitize-short:
	@$(MAKE) sanitize \
	    ARGS="$(wildcard $(patsubst %,tests/test_%.py,$(SANITIZED_SHORT))) $(ARGS)"

.PHONY: bench
bench: $(VENV)/.dev | system-test ## compare with ssh -R and others, on this machine
	$(STEP) "benchmarks" $(BIN)/rtunnel bench $(ARGS)

.PHONY: soak
soak: $(VENV)/.dev | system-test ## break everything around `rtunnel run` for MINUTES=1
	$(STEP) "soak" $(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

.PHONY: lock
lock: $(VENV)/.made ## renew the versions and hashes that are tested with
	$(BIN)/python $(PIP_INSTALL) uv
	$(UV_COMPILE) --group dev --all-extras pyproject.toml -o $(LOCK)
	echo paramiko==$(LOWEST_PARAMIKO) | $(UV_COMPILE) --no-deps - -o $(LOWEST_LOCK)

.PHONY: audit
audit: $(VENV)/.dev ## look for known vulnerabilities of what is tested with
	$(STEP) "audit of dependencies" $(BIN)/python .ci/audit.py --disable-pip \
	    --require-hashes -r $(LOCK)

.PHONY: format
format: $(VENV)/.dev ## let ruff put the layout right
	$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

.PHONY: clean
clean: ## remove everything that was made here
	rm -rf $(VENV) $(LOWEST) $(NEWEST) build dist *.egg-info rtunnel/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- what the steps stand on -----------------------------------------------------------

# Looked at anew each time (it takes a moment): a cached .venv says nothing of the rest.
.PHONY: system-build
system-build:
	@.ci/prepare build

.PHONY: system-test
system-test:
	@.ci/prepare test

$(VENV)/.made: | system-build
	$(STEP) "virtual environment $(VENV)" sh -c \
	    '"$$(.ci/find-python)" -m venv --clear $(VENV) && touch $@'

# Editable: a change of a Python file needs nothing, one of a C file this again.
$(VENV)/.built: $(VENV)/.made $(SOURCES)
	$(STEP) "compile and install rtunnel" sh -c \
	    '$(BIN)/python $(PIP_INSTALL) --editable . && touch $@'

$(VENV)/.dev: $(VENV)/.built $(LOCK)
	$(STEP) "tools for testing" sh -c '$(BIN)/python $(LOCKED) $(LOCK) && touch $@'

$(NEWEST)/.packages: $(LOCK)
	$(STEP) "virtual environment $(NEWEST), $$($(NEWEST_PYTHON) --version)" sh -c \
	    '$(NEWEST_PYTHON) -m venv --clear $(NEWEST) && \
	    $(NEWEST)/bin/python $(LOCKED) $(LOCK) && touch $@'

$(NEWEST)/.dev: $(NEWEST)/.packages $(SOURCES)
	$(STEP) "compile and install rtunnel in $(NEWEST)" sh -c \
	    '$(NEWEST)/bin/python $(PIP_INSTALL) --editable . && touch $@'

# A copy of the checkout, with modules of its own: those of the checkout stay.
.PHONY: sanitizer-env
sanitizer-env: $(VENV)/.dev | system-test
	$(STEP) "a build with sanitizers" .ci/sanitizer-env $(VENV)

$(LOWEST)/.dev: $(VENV)/.dev $(LOWEST_LOCK)
	$(STEP) "virtual environment $(LOWEST), paramiko $(LOWEST_PARAMIKO)" sh -c \
	    '.ci/lowest-env $(VENV) $(LOWEST) $(LOWEST_LOCK) && touch $@'
