# make demo    sets up and prunes a network on the digits that come with scikit-learn
# make test    sets up and passes the tests; make test ARGS="-k graph" runs some of them
# make coverage  the same with a count of lines; fails where a module is below 90 %
# make lint    style, formatting and types
# PYTHON=python3.12 chooses the interpreter, VENV=folder the virtual environment.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: help demo test coverage lint environment clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,/^$$/s/^# //p' Makefile

demo: $(VENV)/.installed
	@$(VENV)/bin/python experiments/prune_rl.py --dataset digits --budget params=0.1 --budget macs=0.3 $(ARGS)

test: environment
	@$(VENV)/bin/python -m pytest -n 2 $(ARGS)

coverage: environment
	@$(VENV)/bin/python -m pytest -n 2 --cov --cov-report= $(ARGS)
	@mkdir -p build
	@$(VENV)/bin/python -m coverage report
	@$(VENV)/bin/python -m coverage json --quiet -o build/coverage.json
	@$(VENV)/bin/python -c 'import json; \
	    files = json.load(open("build/coverage.json"))["files"]; \
	    low = {name: each["summary"]["percent_covered"] for name, each in files.items()}; \
	    low = [f"{name}: {part:.1f} %" for name, part in low.items() if part < 90]; \
	    print(*low, sep="\n"); raise SystemExit(bool(low))'

lint: environment
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/python -m mypy

environment: $(VENV)/.installed-test

# Editable, so that a change of the code needs no new installation; without byte code, half of which
# is never used: Python compiles what it imports.
$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "installing rlprune_jax into $(VENV) (a minute or two) ..."
	@$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml
	@echo "installing rlprune_jax and what its tests need into $(VENV) (a minute or two) ..."
	@$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -e ".[test]"
	@touch $(VENV)/.installed $@

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
