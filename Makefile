# make demo      the example in a virtual environment of its own
# make test      lint, types and tests
# make test-all  the tests on every CPython >= 3.11 found on PATH and under ~/.pyenv
# make docs      the documentation as a site of its own, in site/
# make stress    a minute of pools under fire, 20 s with each start method
# make bench     pairpool beside other pools and the machine's limits, half an hour; ARGS="--quick" is one round
# make clean     remove what the above have made
#
# Nothing has to be installed first: Python >= 3.11, make and git are enough. PYTHON=... chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
NEWER := python3.15 python3.14 python3.13 python3.12 python3.11
PYENV := $(wildcard $(HOME)/.pyenv/versions/3.*/bin/python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

IS_NEW_ENOUGH := import sys; sys.exit(sys.implementation.name != "cpython" or sys.version_info < (3, 11))
MINOR := import sys; print("%d.%d" % sys.version_info[:2])

# A PYTHON that was asked for is taken or refused; only the default may be replaced by a newer one.
ifeq ($(origin PYTHON),file)
CANDIDATES = $(PYTHON) $(NEWER) $(PYENV)
else
CANDIDATES = $(PYTHON)
endif

# Both stamps install into one environment, which two pips at once would break.
.NOTPARALLEL:
# A recipe that was interrupted must not leave a stamp that says it was done.
.DELETE_ON_ERROR:
.PHONY: demo test lint types pytest test-all docs stress bench clean

demo: $(VENV)/demo.stamp
	@$(BIN)/python examples/stdlib_census.py $(ARGS)

test: lint types pytest

lint: $(VENV)/test.stamp
	@$(BIN)/ruff check .

types: $(VENV)/test.stamp
	@$(BIN)/mypy

pytest: $(VENV)/test.stamp
	@$(BIN)/python -m pytest $(ARGS)

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

# Not --quiet, with which no warning is counted, and so none fails the strict build.
docs: $(VENV)/docs.stamp
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean
	@echo "site/index.html is the first page; with search: python3 -m http.server --directory site"

stress: $(VENV)/demo.stamp
	@for method in fork forkserver direct; do \
		$(BIN)/python -m pairpool stress --workers 4 --tasks 80000 --kills 160 --chunksize 1 --seconds 20 \
			--start-method $$method $(ARGS) || exit 1; \
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
