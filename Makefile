# Everything runs in .venv, which each target makes by itself.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
export HF_HUB_OFFLINE = 1
# Threads that wait asleep: on cores that others use too, spinning ones can take ten times as long.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help install demo test test-all lint format docs bench clean

help:
	@echo "make demo      train the demonstration: a ResNet-26 teaches a ResNet-8 to read digits"
	@echo "make test      the tests that must pass"
	@echo "make test-all  all tests, the long ones too"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make format    let ruff rewrite what it can"
	@echo "make docs      write what docs/methods takes from the code"
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
	$(BIN)/pytest -m "not slow"

test-all: install
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/python docs/generate.py

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .import_linter_cache
