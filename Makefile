# make demo      run the example, in a virtual environment
# make test      lint, types and tests
# make pytest    the tests only, in WORKERS processes; ARGS="-n 0 -k name" runs some of them in one process
# make test-all  the tests on every CPython >= 3.11 found on PATH and under ~/.pyenv
# make docs      build the documentation in site/
# make stress    kill workers of running pools for a minute, 20 s per start method; ARGS="--hostile" lets tasks attack the pool
# make bench     compare pairpool with other pools and with the machine's limits in half an hour; ARGS="--quick" is one round
# make clean     remove what the other targets have made
#
# Python >= 3.11, make and git are enough. PYTHON=... chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
NEWER := python3.15 python3.14 python3.13 python3.12 python3.11
PYENV := $(wildcard $(HOME)/.pyenv/versions/3.*/bin/python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

IS_NEW_ENOUGH := import sys; sys.exit(sys.implementation.name != "cpython" or sys.version_info < (3, 11))
MINOR := import sys; print("%d.%d" % sys.version_info[:2])

# One worker more than there are cores, because many tests wait for processes.
CORES := $(shell nproc)
WORKERS ?= $(shell echo $$(($(CORES) < 8 ? $(CORES) + 1 : 8)))

# An explicit PYTHON is used or refused. Only the default may be replaced by a newer interpreter.
ifeq ($(origin PYTHON),file)
CANDIDATES = $(PYTHON) $(NEWER) $(PYENV)
else
CANDIDATES = $(PYTHON)
endif

# All stamps install into one environment, and two pips at once would break it.
.NOTPARALLEL:
# An interrupted recipe must not leave its stamp behind.
.DELETE_ON_ERROR:
.PHONY: demo test lint types pytest test-all docs stress bench clean

demo: $(VENV)/demo.stamp
	@$(BIN)/python examples/stdlib_census.py $(ARGS)

test: lint types pytest

lint: $(VENV)/test.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "make lint: run $(BIN)/ruff format" >&2; exit 1; }

types: $(VENV)/test.stamp
	@$(BIN)/mypy

pytest: $(VENV)/test.stamp
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-all:
	@tried=; failed=; \
	for python in $(PYTHON) $(NEWER) $(PYENV); do \
		"$$python" -c '$(IS_NEW_ENOUGH)' 2>/dev/null || continue; \
		minor=$$("$$python" -c '$(MINOR)'); \
		case " $$tried " in *" $$minor "*) continue;; esac; \
		tried="$$tried $$minor"; \
		echo "== $$("$$python" --version): $$(command -v "$$python")"; \
		$(MAKE) --no-print-directory PYTHON="$$python" VENV=".venv-$$minor" pytest || failed="$$failed $$minor"; \
	done; \
	[ -n "$$tried" ] || { echo "pairpool needs CPython 3.11 or newer, and none was found." >&2; exit 1; }; \
	echo "== tested on CPython$$tried"; \
	[ -z "$$failed" ] || { echo "== failed on CPython$$failed" >&2; exit 1; }

# Without --quiet, because mkdocs then counts no warnings, and the strict build cannot fail.
docs: $(VENV)/docs.stamp
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean
	@echo "site/index.html is the first page; with search: python3 -m http.server --directory site"

STRESS_MIX := $(if $(findstring --hostile,$(ARGS)),,--tasks 80000 --kills 160 --chunksize 1 --seconds 20)

stress: $(VENV)/demo.stamp
	@for method in fork forkserver direct; do \
		$(BIN)/python -m pairpool stress --workers 4 $(STRESS_MIX) --start-method $$method $(ARGS) || exit 1; \
	done

bench: $(VENV)/bench.stamp
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .venv-* build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.stamp:
	@for python in $(CANDIDATES); do \
		if "$$python" -c '$(IS_NEW_ENOUGH)' 2>/dev/null; then \
			echo "making $(VENV) with $$("$$python" --version)"; \
			"$$python" -m venv --clear $(VENV) && touch $@; \
			exit; \
		fi; \
	done; \
	echo "pairpool needs CPython 3.11 or newer, and $(PYTHON) is not: install one, or name it with PYTHON=..." >&2; \
	exit 1

$(VENV)/demo.stamp: pyproject.toml $(VENV)/python.stamp
	@$(PIP) install --editable .
	@touch $@

$(VENV)/docs.stamp: pyproject.toml $(VENV)/python.stamp
	@$(PIP) install --editable '.[docs]'
	@touch $@

$(VENV)/bench.stamp: pyproject.toml $(VENV)/python.stamp
	@$(PIP) install --editable '.[bench]'
	@$(PIP) install ray || echo "Ray cannot be installed here: the benchmarks go on without it."
	@touch $@

$(VENV)/test.stamp: pyproject.toml $(VENV)/python.stamp
	@$(PIP) install --editable '.[test]'
	@touch $@
