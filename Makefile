# Needs Python 3.10 or newer, make and git; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# OpenMP threads that wait without spinning: on a busy machine small networks train many times faster.
export OMP_WAIT_POLICY ?= passive

.PHONY: help setup try run test soak lint lab docs clean

help:
	@echo "make try    install, run the first notebook alone, in about a minute"
	@echo "make run    install, run all notebooks on the embedded digits, show the results"
	@echo "make test   install, run the tests"
	@echo "make soak   repeat kills, full disks and bad input for MINUTES=30, print figures"
	@echo "make lab    install, open JupyterLab on the notebooks"
	@echo "make lint   ruff and mypy"
	@echo "make docs   build the documentation site in build/docs, with the notebooks that make run executed"
	@echo "make clean  remove .venv, build/ and runs/"

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "ickd needs Python 3.10 or newer; name one with make PYTHON=python3.12"; exit 1; }
	@echo "Installing into .venv; torch is large, so this takes minutes the first time."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[notebooks,dense,test]"
	@touch $@

try: setup
	@$(BIN)/python notebooks/run.py 00

run: setup
	@$(BIN)/python notebooks/run.py

test: setup
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

MINUTES ?= 30
soak: setup
	$(BIN)/python benchmarks/soak --minutes $(MINUTES) --out runs/soak.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: setup
	$(BIN)/jupyter lab notebooks

docs: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@$(BIN)/python docs/site/build.py

clean:
	rm -rf .venv build runs
