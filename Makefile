# make demo        search detectors of handwritten digits and say where the report is
# make dashboard   look at the demo's studies with optuna-dashboard, on this machine only
# make test        style, types and tests
# make test-long   the tests that take longest: chaos with 300 trials, the commands of all documents, the notebooks
# make gpu-check   everything that a search does on a GPU, tried and measured in eight minutes
# make docs        the guide and the reference as HTML, in build/docs
# They need Python 3.10 to 3.13 only; what they install goes to .venv and is used again.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-study dashboard docs test test-long gpu-check style lint format clean

demo: .venv/installed
	$(BIN)/python -m smnas_optuna.run_study digits --stage all --storage sqlite:///demo.db --output demo --seed 0

dashboard: .venv/installed
	$(BIN)/optuna-dashboard sqlite:///demo.db --artifact-dir demo/artifacts --host 127.0.0.1 --port 8080

# The study that the notebooks open, made anew from the demo.
demo-study: demo
	$(BIN)/python notebooks/ship_study.py demo.db notebooks/demo_study.db

docs: .venv/installed-docs
	$(BIN)/sphinx-build -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

# A file's tests run in one process, since they share what they have prepared.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

# The types are checked beside the tests, since mypy keeps only one core busy.
test: style .venv/browser
	$(BIN)/mypy & types=$$!; $(PYTEST) -m "not long" --durations=30 \
		&& { wait $$types || { echo "mypy found errors, see above" >&2; exit 1; }; }

test-long: .venv/installed-dev .venv/browser
	$(PYTEST) -m long

gpu-check: .venv/installed-dev
	$(BIN)/python -m benchmarks.gpu_check

style: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lint: style
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv demo demo.db*

.venv/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The build backend warns of editable installations, which are what is wanted here.
.venv/installed: .venv/pip pyproject.toml
	@echo "installing into .venv: torch and what goes with it, about 6 GB, takes some minutes"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-docs: .venv/installed
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

.venv/installed-dev: .venv/installed
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# What the report and the dashboard are looked at with; where Debian's cannot be had those tests are skipped.
.venv/browser: .venv/pip
	command -v chromium >/dev/null || { apt-get -qq update && apt-get -qq install --yes chromium >/dev/null; } \
		|| echo "no Chromium here, and none to be installed: what needs a browser is not tested"
	touch $@
