# Seven commands, each for a fresh checkout too: whatever they need is set up first, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-demo
READY_DEV := $(VENV)/.ready-dev
READY_DOCS := $(VENV)/.ready-docs

.PHONY: demo test check bench docs build integrations

demo: $(READY)          ## a twin beside the real person, a guessing game, a chat, a measurement; ARGS="--yes --no-fetch"
	@$(BIN)/usertwin demo $(ARGS)

test: $(READY_DEV)      ## every test, the real tiny model's included, with the coverage of lines
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist worksteal --cov --cov-report=term

check: $(READY_DEV)     ## lint, format, types, generated documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright --pythonpath $(BIN)/python
	@$(BIN)/cog --check docs/commands.md docs/files.md

bench: $(READY_DEV)     ## every figure, or ONLY=name for a part: build/bench.json
	@$(BIN)/python -m usertwin.evals.benchmarks.run $(if $(ONLY),--only $(ONLY))

docs: $(READY_DOCS)     ## the generated parts of the documentation, and the site in build/site
	@$(BIN)/cog -r docs/commands.md docs/files.md
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

build: $(READY_DEV)     ## the wheel and the source distribution, in dist/
	@rm -rf build/lib dist
	@$(BIN)/python -m build --outdir dist .

integrations: $(READY_DEV)  ## other tools with a twin as their user, each in an environment of its own, or ONLY=name
	@$(BIN)/python tests/integrations/environments.py $(ONLY)

$(VENV):
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "usertwin needs Python 3.11 or newer: make PYTHON=python3.11"'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"

$(READY): pyproject.toml | $(VENV)
	@echo "installing usertwin into $(VENV) (torch is the largest part; once only)"
	@$(BIN)/python -m pip install --editable . > $(VENV)/install.log 2>&1 || { tail -n 20 $(VENV)/install.log; exit 1; }
	@touch $@

$(READY_DEV): $(READY)
	@$(BIN)/python -m pip install --editable ".[train]" --group dev > $(VENV)/install-dev.log 2>&1 || { tail -n 20 $(VENV)/install-dev.log; exit 1; }
	@touch $@

$(READY_DOCS): $(READY)
	@$(BIN)/python -m pip install --group docs > $(VENV)/install-docs.log 2>&1 || { tail -n 20 $(VENV)/install-docs.log; exit 1; }
	@touch $@
