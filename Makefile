# `make demo` and `make test` need Python >= 3.10 and a network to the package registries.
PYTHON ?= python3
# The torch that the tests and the README's figures were run with; any other >= 2.6 may be given.
TORCH ?= torch==2.14.1 torchvision==0.29.1
VENV := .venv
# Threads that spin while they wait slow small models tenfold where processors are shared.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-heavy test-recipes lint clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

# Without a visible GPU the installation of NATTEN compiles nothing.
$(VENV)/.natten: $(VENV)/.installed
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pip install --quiet "natten>=0.21"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m visattn.zoo.demo

test: $(VENV)/.natten lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not heavy and not recipes"

test-slow: $(VENV)/.natten
	$(BIN)/pytest -n 2 --dist worksteal -m slow

test-heavy: $(VENV)/.natten
	$(BIN)/pytest -n 2 --dist worksteal -m heavy

test-recipes: $(VENV)/.natten
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist load -m recipes

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
