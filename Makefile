# `make help` lists the targets; CI calls the same ones.
#
#   PYTHON=python3.12              the interpreter that the environment is made with
#   VENV=.venv                     where the environment lies
#   PYTEST_ARGS="-k penalty -x"    more arguments for pytest
#   FIT_ARGS=..., TEST_ARGS=...    more arguments for the two commands of `make demo`
#   CONSTRAINED_DIFFUSION_DATA=... the folder that holds MNIST/; tests that need real data are skipped without it

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
FIT_ARGS ?=
TEST_ARGS ?=

BIN := $(VENV)/bin
INSTALL := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --constraint constraints.txt --editable

# Each of these empty files says that a step was done, so that it is done again only when what it read has changed.
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
INSTALLED_MAZE := $(VENV)/.installed-maze
INSTALLED_POLYMER := $(VENV)/.installed-polymer
INSTALLED_DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv install install-dev demo demo-maze demo-polymer test test-slow lint types format clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

venv: $(CREATED) ## make the environment, .venv

install: $(INSTALLED) ## install the package from this checkout, with what the main job needs

install-dev: $(INSTALLED_DEV) ## the same, with what tests, lint and types need

demo: $(INSTALLED) ## install, remove the fours from a digit model, print one before/after table
	$(BIN)/lightning fit --config mnist.yaml$(if $(FIT_ARGS), $(FIT_ARGS))
	$(BIN)/lightning test --config mnist.yaml$(if $(TEST_ARGS), $(TEST_ARGS))

demo-maze: $(INSTALLED_MAZE) ## install, keep a planner out of two zones: random walks, then from a start to a goal
	$(BIN)/lightning fit --config maze2d.yaml
	$(BIN)/lightning test --config maze2d.yaml
	$(BIN)/lightning fit --config maze2d_goal.yaml
	$(BIN)/lightning test --config maze2d_goal.yaml

demo-polymer: $(INSTALLED_POLYMER) ## install, make a generator of polymers write those that are preferred
	$(BIN)/lightning fit --config polymer.yaml
	$(BIN)/lightning test --config polymer.yaml

test: $(INSTALLED_DEV) ## install what tests need and run them, the examples in docstrings included
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(INSTALLED_DEV) ## run the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(INSTALLED_DEV) ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED_DEV) ## check types
	$(BIN)/mypy

format: $(INSTALLED_DEV) ## mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove builds and caches; the environment and runs/ stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find constrained_diffusion tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Python 3.11 or newer is needed, but there is no '$(PYTHON)'; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	    "name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt | $(CREATED)
	$(INSTALL) '.[report]'
	@touch $@

$(INSTALLED_MAZE): pyproject.toml constraints.txt | $(CREATED)
	$(INSTALL) '.[maze]'
	@touch $(INSTALLED) $@

$(INSTALLED_POLYMER): pyproject.toml constraints.txt | $(CREATED)
	$(INSTALL) '.[polymer]'
	@touch $(INSTALLED) $@

$(INSTALLED_DEV): pyproject.toml constraints.txt | $(CREATED)
	$(INSTALL) '.[dev]'
	@touch $(INSTALLED) $(INSTALLED_MAZE) $(INSTALLED_POLYMER) $@
