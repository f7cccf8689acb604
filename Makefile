# Two commands on a machine with Python 3.11 and make: `make demo` and `make test`.
# Everything is installed into .venv; nothing outside this folder is touched, but for the browser that
# one test needs (see `browser`).

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= recipes/demo.yaml

# pip leaves compiling to the first import, which compiles only what is used: 30 s sooner. For that, Python
# must be allowed to keep what it has compiled.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test install check browser docs combinations effects clean
.DELETE_ON_ERROR:

demo: .venv/runtime.stamp
	$(BIN)/temper run $(DEMO)

test: check browser
	$(BIN)/pytest -n 2 --dist loadfile

check: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

install: .venv/test.stamp

docs: .venv/test.stamp
	rm -rf docs/methods
	$(BIN)/python -m temper.pipeline.pages docs/methods

# Tries every pair of methods across axes: some minutes. The methods' pages tell what came of it.
combinations: .venv/test.stamp
	$(BIN)/temper methods --probe --to docs/combinations.md
	$(MAKE) docs

# Runs every study of effects and writes docs/effects.md: under an hour on two cores.
effects: .venv/test.stamp
	PYTHONPATH=tests $(BIN)/python -m effects

.venv/runtime.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Temper needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1);" \
	         "name another one: make PYTHON=python3.11 $(or $(MAKECMDGOALS),demo)"; exit 1; }
	@echo "Installing Temper into .venv (about a minute) ..."
	@$(PYTHON) -m venv .venv
	@$(INSTALL) --editable .
	@touch $@

.venv/test.stamp: .venv/runtime.stamp
	@echo "Installing what the tests need ..."
	@$(INSTALL) --editable '.[test]'
	@touch $@

# The report is looked at in a headless browser. Without one its test fails and says so.
browser:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	    command -v $$name >/dev/null && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing Chromium ..."; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else \
	    echo "No Chromium here, so the report's browser test will fail; install it: sudo apt-get install chromium"; \
	fi

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
