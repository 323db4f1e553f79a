# callboard: everything a bare machine needs is Python 3.11 or newer and make; its tests need a redis-server, too, which they install
# where they may. `make` alone lists the targets.
#
#   PYTHON   the interpreter that makes the environment      make test PYTHON=python3.13 VENV=.venv-3.13
#   VENV     where the environment is                        (an environment keeps the interpreter it was made with)
#   WORKERS  how many tests run at once                      make test WORKERS=4
#   ARGS     more arguments for pytest                       make test ARGS="-k cancel -x"
#   ONCE     make demo ends by itself                        make demo ONCE=1

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
ARGS ?=
ONCE ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPING := $(VENV)/.installed-dev
PYTEST := $(BIN)/python -m pytest
LEAST_COVERAGE := 95

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup redis demo check test coverage suite soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(DEVELOPING) ## create the environment and install callboard with its development tools

redis: ## see that there is a redis-server for the tests to start; as root on Debian and Ubuntu, install one
	@.ci/redis

demo: $(INSTALLED) ## set up, start a server, run a real job and follow it live (ONCE=1: end by itself)
	@$(BIN)/callboard demo $(if $(ONCE),--once)

check: $(DEVELOPING) ## lint, format, types, import contracts, shape of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/lint-imports
	$(PYTEST) -q tests/test_shape.py

test: redis $(DEVELOPING) ## every test but the long ones, with branch coverage
	$(PYTEST) -n $(WORKERS) --cov --cov-branch --cov-report= $(ARGS)
	@$(MAKE) --no-print-directory coverage

coverage: ## what the last `make test` covered
	$(BIN)/coverage report
	@echo
	@echo "runtime/ and stores/ must reach $(LEAST_COVERAGE) %:"
	$(BIN)/coverage report --include='runtime/*,stores/*' --format=total --fail-under=$(LEAST_COVERAGE)

suite: redis $(DEVELOPING) ## the same tests without coverage
	$(PYTEST) -n $(WORKERS) $(ARGS)

soak: redis $(DEVELOPING) ## the long runs: hundreds of kill -9, many clients, an hour of hostile ones (CALLBOARD_SOAK_SECONDS)
	$(PYTEST) -m soak -o faulthandler_timeout=3600 $(ARGS)

clean: ## remove the environments and whatever the tools left behind
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "callboard needs Python 3.11 or newer; '$(PYTHON)' is not. Name one that is: make $(MAKECMDGOALS) PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv; or name a complete Python: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "Installing callboard into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# The development tools are the group `dev` of pyproject.toml; pip reads groups since 25.1.
$(DEVELOPING): $(INSTALLED)
	@echo "Installing the development tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@
