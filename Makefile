# Everything runs in a virtual environment of the project. `make demo` and `make test` need Python, make and git only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test integration demo docs docs-serve format lint clean

$(VENV)/installed: setup.py setup.cfg azure_imds_credential/__init__.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python samples/demo.py

# Material for MkDocs warns of MkDocs 2, which setup.cfg rules out.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "The site is build/docs/index.html; make docs-serve shows it, with search."

docs-serve: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# Two workers: most of the time the tests wait for something. A file stays with one of them.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Against software of others: Azurite, MSAL for Go, Azure's clients, other libraries, the built wheel. Needs node, go and ip.
integration: $(VENV)/installed-integration
	$(BIN)/python -m pytest tests/integration

$(VENV)/installed-integration: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,adapters,integration]'
	touch $@

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing
	$(BIN)/azure-imds scan recordings

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info
