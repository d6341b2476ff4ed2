# make demo: install into .venv and find a first circuit.   make test: install and run the tests.
VENV ?= .venv
PYTHON ?= python3
INSTALLED := $(VENV)/.installed
PLUGIN := $(VENV)/.plugin

.PHONY: install demo test test-slow lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,all]'
	@touch $@

# The example of a plug-in, which the tests use through acdc.
$(PLUGIN): $(INSTALLED) examples/plugin/pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable examples/plugin
	@touch $@

demo: $(INSTALLED)
	$(VENV)/bin/acdc

test: $(INSTALLED) $(PLUGIN)
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

test-slow: $(INSTALLED) $(PLUGIN)
	$(VENV)/bin/python -m pytest -m slow --numprocesses auto --dist worksteal

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
