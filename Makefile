# Everything runs in .venv, which each target makes by itself.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
PYTHON ?= $(shell for python in $(PYTHONS); do $$python -c '' 2>&- && command -v $$python && break; done)
BIN := .venv/bin
LOWEST := .venv-lowest/bin
export HF_HUB_OFFLINE = 1
# Threads that wait asleep: on cores that others use too, spinning ones can take ten times as long.
export OMP_WAIT_POLICY ?= PASSIVE
# Tests run in two processes of one thread each, a file at a time.
SIDE_BY_SIDE := OMP_NUM_THREADS=1
WORKERS := -n 2 --dist loadfile

.PHONY: help install demo test test-all test-lowest lint format docs soak bench clean

help:
	@echo "make demo      train the demonstration: a ResNet-26 teaches a ResNet-8 to read digits"
	@echo "make test      the tests that must pass"
	@echo "make test-all  all tests, the long ones too"
	@echo "make test-lowest  the tests on the lowest versions that pyproject.toml allows, with Python 3.11"
	@echo "make lint      ruff, mypy, import-linter; whether the generated pages are current"
	@echo "make format    let ruff rewrite what it can"
	@echo "make docs      write what the documentation takes from the code"
	@echo "make soak      kill runs at 200 random places and resume them: an hour or more"
	@echo "make bench     measure what is claimed about speed"

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/flowstill demo

test: install
	$(SIDE_BY_SIDE) $(BIN)/pytest -m "not slow" $(WORKERS)

test-all: install
	$(SIDE_BY_SIDE) $(BIN)/pytest $(WORKERS)

# uv resolves each dependency to its lower bound; the versions of constraints.txt do not count here.
test-lowest: .venv-lowest/.installed
	$(SIDE_BY_SIDE) $(LOWEST)/pytest -m "not slow" $(WORKERS)

.venv-lowest/.installed: pyproject.toml
	python3.11 -m venv --clear .venv-lowest
	$(LOWEST)/pip install --quiet uv
	$(LOWEST)/uv pip install --quiet --python .venv-lowest --resolution lowest-direct --editable '.[dev]'
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python docs/generate.py

soak: install
	$(SIDE_BY_SIDE) PYTHONPATH=tests $(BIN)/python -m support.killing --kills 200

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-lowest build dist .mypy_cache .ruff_cache .import_linter_cache
