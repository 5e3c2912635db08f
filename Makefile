# Everything runs in one virtual environment of the project, .venv. Each target adds to it the set of packages that it
# needs (EXTRAS_...), so `make demo` and `make test` stay light. They need Python, make and git only.
# Another Python than python3: `make clean`, then `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
# The environment has a pip of its own only where $(PYTHON) has none that will do (.ci/make_environment.py).
PIP := $$(test -x $(BIN)/pip && echo $(RUN) pip || echo $(PYTHON) -m pip --python $(BIN)/python)
# Setuptools warns that an editable install is one.
INSTALL := PYTHONWARNINGS=ignore $(PIP) --disable-pip-version-check --quiet install --editable

# Text is UTF-8, and messages are English, whatever the locale says.
export PYTHONUTF8 := 1
export LC_ALL := C.UTF-8

# The extras of setup.cfg that make up each set.
EXTRAS_demo := demo
EXTRAS_test := test
EXTRAS_lint := lint
EXTRAS_docs := docs
EXTRAS_fuzz := test,fuzz
EXTRAS_matrix := matrix
EXTRAS_mutants := mutation
EXTRAS_integration := test,adapters,integration

.PHONY: demo test test-alone test-stress test-matrix integration fuzz mutants docs docs-serve lint format clean
.NOTPARALLEL:

demo: $(VENV)/installed-demo
	$(BIN)/python samples/demo.py

# Two workers: most of the time the tests wait for something. A file stays with one of them.
test: $(VENV)/installed-test
	$(RUN) pytest -n 2 --dist loadfile $(ARGS)

# What measures real time: the benchmarks, and the emulator under load. On a quiet machine.
test-alone: $(VENV)/installed-test
	$(RUN) pytest -m alone $(ARGS)

# The suite RUNS times in random order, AT_ONCE of them at the same time, beside BUSY busy loops (tests/stress.py).
RUNS ?= 20
AT_ONCE ?= 1
BUSY ?= 4
test-stress: $(VENV)/installed-test
	$(BIN)/python tests/stress.py --runs $(RUNS) --at-once $(AT_ONCE) --busy $(BUSY) $(ARGS)

# On each Python of this machine (noxfile.py). ARGS goes to pytest, NOX to nox.
test-matrix: $(VENV)/installed-matrix
	$(RUN) nox $(NOX) -- $(ARGS)

# Against software of others: Azurite, clients in five languages, other libraries, the built wheel. Needs node, go, java, mvn,
# cargo, redis, ip and chromium; what the machine lacks is skipped, but not where CI is set. The first run builds for minutes.
# Two files of the suite are tried here once more: gevent, eventlet and httpx come with this set only.
integration: $(VENV)/installed-integration
	$(RUN) pytest tests/integration tests/test_green_threads.py tests/test_transports.py $(ARGS)

# Coverage-guided, by atheris, which has wheels for some Pythons on Linux only.
fuzz: $(VENV)/installed-fuzz
	$(RUN) pytest tests/test_fuzz.py -k coverage_guided $(ARGS)

# By itself on a machine: mutmut signals the process IDs of mutants that have ended, which other programs may have then.
# One change at a time in the pure modules: does a test notice? A quarter of an hour; docs/proofs.md lists what survives.
mutants: $(VENV)/installed-mutants
	rm -rf mutants
	$(BIN)/mutmut run
	$(BIN)/python tests/mutants.py

# Material for MkDocs warns of MkDocs 2, which setup.cfg rules out.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --quiet
	@echo "The site is build/docs/index.html; make docs-serve shows it, with search."

docs-serve: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs serve

# One line for each check: each is a complete command.
lint: $(VENV)/installed-lint
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) mypy --strict tests/typing
	$(BIN)/lint-imports --no-cache
	$(BIN)/shellcheck --enable $(SHELL_CHECKS) samples/azure/*.sh
	$(RUN) azure_imds_credential scan recordings

# The optional checks that catch real slips.
SHELL_CHECKS := add-default-case,avoid-nullary-conditions,deprecate-which,quote-safe-variables,useless-use-of-cat

format: $(VENV)/installed-lint
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

clean:
	rm -rf $(VENV) build dist mutants *.egg-info

# What one needs to work on the project: the tests and the linters.
$(VENV)/installed: $(VENV)/installed-test $(VENV)/installed-lint
	@touch $@

# .venv/whole is away while packages are installed. So after an install that failed or was interrupted the next `make`
# starts over, with a new environment.
$(VENV)/installed-%: setup.py setup.cfg pyproject.toml azure_imds_credential/_version.py | $(VENV)/whole
	@rm $(VENV)/whole
	@echo "Installing what 'make $*' needs into $(VENV)"
	@$(INSTALL) '.[$(EXTRAS_$*)]'
	@touch $(VENV)/whole $@

$(VENV)/whole:
	@$(PYTHON) .ci/make_environment.py $(VENV)
	@touch $@
