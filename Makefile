# make demo    search detectors of handwritten digits and say where the report is
# make test    the whole suite: style, types, tests
# Both need Python 3.10 to 3.13 only; what they install goes to .venv and is used again.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format clean

demo: .venv/installed
	$(BIN)/python -m smnas_optuna.run_study digits --stage all --storage sqlite:///demo.db --output demo --seed 0

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv demo demo.db

.venv/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The build backend warns of editable installations, which are what is wanted here.
.venv/installed: .venv/pip pyproject.toml
	@echo "installing into .venv: torch and what goes with it, about 6 GB, takes some minutes"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
