# Two commands matter: `make demo` and `make test`. Both set everything up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The base install alone, at the oldest versions that it allows.
LOWEST := .venv-lowest
LOWEST_STAMP := $(LOWEST)/.ready

.PHONY: demo test setup lint types unit lowest docs web clean

demo: $(STAMP)
	$(BIN)/adalora-qat demo --out runs/demo

test: lint types web unit lowest docs

setup: $(STAMP)

# The CPU build of torch comes first, by its exact version: a range would bring a GPU build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vulture

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

$(LOWEST_STAMP): pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable . pytest
	touch $(LOWEST_STAMP)

# Without conftest.py and the settings of pyproject.toml: they ask for what is not installed here.
lowest: $(LOWEST_STAMP)
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --noconftest -c /dev/null --rootdir . -p no:cacheprovider tests/lowest.py

# The page of `serve`, into the package. Without npm it stays unbuilt, and its tests say so.
PAGE := src/adalora_qat/serve/built/index.html
web: $(PAGE)

$(PAGE): $(wildcard web/src/*) web/build.mjs web/package-lock.json web/tsconfig.json
	@if command -v npm >/dev/null; then \
	  npm --prefix web ci --no-audit --no-fund --ignore-scripts && npm --prefix web run build; \
	else echo "npm is not installed: the page is not built"; fi

# Not --quiet: it hides the warnings that --strict counts.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

clean:
	rm -rf $(VENV) $(LOWEST) site build web/node_modules src/adalora_qat/serve/built *.egg-info src/*.egg-info
