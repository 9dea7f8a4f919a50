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
# The newest Python that is here, if it is newer than that of $(VENV).
NEWEST := .venv-newest
NEWEST_PYTHON = $(shell .ci/find-newest-python)
BIN := $(VENV)/bin
STEP := @.ci/step
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
ARGS :=
MINUTES := 1
export PYTHON

SOURCES := setup.py pyproject.toml $(wildcard src/pump/*)
# What does not touch paramiko's own API need not run again on the oldest one.
NOT_LOWEST := addresses aio bench broker_* cli cli_others cli_visitors config fairness forwards \
    gateway_command gateway_config halfclose handlers hostkeys interop_* layers openssh_* \
    package policy profile* proxy_protocol pump_* run_command scale socks status* stream style \
    supervisor* tunnel_rules tunnel_services window windows wire x2go_*
# A new Python changes what is compiled, too.
NOT_NEWEST := $(filter-out aio pump_% stream socks,$(NOT_LOWEST))
# The tests wait more than they work: two processes, a file on one of them.
PARALLEL := -n 2 --dist loadgroup -p no:benchmark
# That the benchmarks run, not what they measure.
SMOKE := bulk latency --quick
# The text of a dependency group, for a pip that cannot read one (before 25.1).
GROUP := import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))
DEV_GROUP := $(GROUP)["dependency-groups"]["dev"], sep="\n")
RUN_GROUP := $(GROUP)["project"]["dependencies"], sep="\n")

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
checks: system-test lint typecheck ctest pytest pytest-lowest pytest-newest bench-smoke

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
	$(STEP) "C tests (ASan, UBSan)" $(MAKE) -C tests/c
	$(STEP) "C tests of threads (ThreadSanitizer)" $(MAKE) -C tests/c tsan

.PHONY: pytest
pytest: $(VENV)/.dev | system-test ## the tests, on the newest paramiko
	$(STEP) "tests, newest paramiko" $(BIN)/python -m pytest -q $(PARALLEL) $(ARGS)

.PHONY: pytest-lowest
pytest-lowest: $(LOWEST)/.dev | system-test ## the tests, on the oldest paramiko supported
	$(STEP) "tests, paramiko $(LOWEST_PARAMIKO)" $(LOWEST)/bin/python -m pytest -q $(PARALLEL) \
	    $(patsubst %,--ignore-glob='*/test_%.py',$(NOT_LOWEST)) $(ARGS)

.PHONY: pytest-newest
pytest-newest: | system-test ## the tests, on the newest Python that is here
	@if [ -n "$(NEWEST_PYTHON)" ]; then $(MAKE) pytest-newest-here; else \
	    printf '\n==> tests, newest Python: there is none newer than that of $(VENV)\n'; fi

.PHONY: pytest-newest-here
pytest-newest-here: $(NEWEST)/.dev | system-test
	$(STEP) "tests, $$($(NEWEST)/bin/python --version)" \
	    $(NEWEST)/bin/python -m pytest -q $(PARALLEL) \
	    $(patsubst %,--ignore-glob='*/test_%.py',$(NOT_NEWEST)) $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev | system-test ## compare with ssh -R and others, on this machine
	$(STEP) "benchmarks" $(BIN)/rtunnel bench $(ARGS)

.PHONY: bench-smoke
bench-smoke: $(VENV)/.dev | system-test
	$(STEP) "benchmarks, a short run" $(BIN)/rtunnel bench $(SMOKE)

.PHONY: soak
soak: $(VENV)/.dev | system-test ## break everything around `rtunnel run` for MINUTES=1
	$(STEP) "soak" $(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(ARGS)

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

$(VENV)/.dev: $(VENV)/.built pyproject.toml
	@$(BIN)/python -c '$(DEV_GROUP)' > $(VENV)/dev.txt
	$(STEP) "tools for testing" sh -c \
	    '$(BIN)/python $(PIP_INSTALL) -r $(VENV)/dev.txt && touch $@'

$(NEWEST)/.dev: $(SOURCES)
	@$(NEWEST_PYTHON) -c '$(DEV_GROUP)' > $(VENV)/newest.txt
	$(STEP) "virtual environment $(NEWEST), $$($(NEWEST_PYTHON) --version)" sh -c \
	    '$(NEWEST_PYTHON) -m venv --clear $(NEWEST) && \
	    $(NEWEST)/bin/python $(PIP_INSTALL) --editable . -r $(VENV)/newest.txt && touch $@'

# The same interpreter, so that the modules compiled for $(VENV) serve here too.
$(LOWEST)/.dev: $(VENV)/.built pyproject.toml
	@$(BIN)/python -c '$(DEV_GROUP)' > $(VENV)/lowest.txt
	@$(BIN)/python -c '$(RUN_GROUP)' >> $(VENV)/lowest.txt
	$(STEP) "virtual environment $(LOWEST), paramiko $(LOWEST_PARAMIKO)" sh -c \
	    '$(BIN)/python -m venv --clear $(LOWEST) && \
	    $(LOWEST)/bin/python $(PIP_INSTALL) -r $(VENV)/lowest.txt \
	    paramiko==$(LOWEST_PARAMIKO) && touch $@'
