# `make test` and `make demo` each do all the set-up that they need, once; Python 3.11 or newer is all they ask for.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv

.PHONY: help setup test lint demo clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/  make \1:/p' $(MAKEFILE_LIST)

setup: $(VENV)/installed  ## create .venv and install Serrate in it, with the versions of constraints.txt

test: lint  ## lint, types, import contract, then the test suite (ARGS="tests/data -k csv" narrows it)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 $(ARGS)

lint: setup  ## ruff, pyright and the import contract
	$(VENV)/bin/ruff check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(VENV)/bin/pyright
	$(VENV)/bin/lint-imports --no-cache

demo: setup  ## log → model → metrics → recommendations → report, in a few minutes (OUT=folder, else a new one in runs/)
	$(VENV)/bin/serrate quickstart --out "$(or $(OUT),runs/$(shell date +demo-%Y%m%d-%H%M%S))"

clean:  ## remove .venv and everything that tools cached here
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Serrate needs Python 3.11 or newer, found none: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { \
		rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)" >&2; exit 1; }

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Serrate and its dependencies into $(VENV) (some minutes the first time)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
