# Everything on a fresh machine with Python 3.11 or newer:
#   make demo    install, then the main job on cars it draws itself (ARGS=--no-serve ends by itself)
#   make test    install, then all tests
.PHONY: setup demo test lint serve

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

setup: $(STAMP)

# Anew whenever what is to be installed changes.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	@PATH="$(abspath $(BIN)):$$PATH" bash demo.sh $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make serve GALLERY=galleries/cars
GALLERY ?= demo/gallery
serve: setup
	$(BIN)/dscl serve --gallery $(GALLERY) $(ARGS)
