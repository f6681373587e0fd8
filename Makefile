# Everything on a fresh machine with Python 3.11 or newer:
#   make demo    install, then the main job on cars it draws itself (ARGS=--no-serve ends by itself)
#   make test    install, also Chromium where apt can, then all tests
#   make test-milvus     the tests that need a Milvus server, beside a real one
#   make check-deploy    Dockerfile, docker-compose.yml and deploy/, by the programs that read them
#   make screenshots     pictures of the page, all views, into scratch/screenshots (after make demo)
.PHONY: setup demo test test-milvus lint serve browser check-deploy screenshots

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

# Files of tests side by side, as many as there are cores: ARGS=-n0 runs them one after another.
test: setup browser
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

# The browser that the page is tested in: what there is, or Debian's. Without one those tests say so.
browser: setup
	@$(BIN)/python -c 'from tests.service.browser import find_chromium; exit(find_chromium() is None)' \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "Installing Chromium …" \
	    && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
	      --no-install-recommends chromium fonts-liberation >/dev/null; } \
	  || echo "No Chromium, and no apt-get that may install it: the tests of the page in a browser are skipped."

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make serve GALLERY=galleries/cars
GALLERY ?= demo/gallery
serve: setup
	$(BIN)/dscl serve --gallery $(GALLERY) $(ARGS)

# The Dockerfile's own lines, too, in a folder that stands for the container: minutes, as it installs
# anew. TARGET=train installs torch.
TARGET ?= serve
check-deploy: setup
	$(BIN)/python scripts/check_deploy.py $(ARGS)
	$(BIN)/python scripts/run_dockerfile.py --target $(TARGET)

# make screenshots ARGS=--docs   also the README's
screenshots: browser
	$(BIN)/python scripts/screenshots.py $(ARGS)

# Tests beside a real Milvus server, which is installed into .venv-milvus (Linux on x86_64); exits with
# 2 and says why where it cannot be had. One after another: one of them kills the server.
test-milvus: setup
	$(BIN)/python scripts/with_milvus.py $(BIN)/python -m pytest -m milvus_server $(ARGS)
