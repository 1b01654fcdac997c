# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs in .venv; a fresh machine needs python3 (3.11 or newer), make and git.

PYTHON = python3
PROMPT = 红苹果
OUTPUT =
PYTEST_ARGS =

VENV = .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SETUP_FILES = setup.cfg pyproject.toml constraints.txt

# Stamps inside .venv: removing the folder is all it takes to start again.
VENV_STAMP = $(VENV)/.created
PAINT_STAMP = $(VENV)/.ready-to-paint
DEV_STAMP = $(VENV)/.ready-to-develop

# The prompt reaches the shell as a variable, so that no character of it is ever a command.
export PROMPT OUTPUT

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.PHONY: help paint test test-slow test-newest test-oldest quality bench bench-full demo-model docs build clean

help: ## List the targets
	@echo "pai-painter: pictures from Chinese captions"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  make %-11s %s\n' "$$target" "$$text"; done
	@echo
	@echo "Variables: PROMPT (the caption to paint), OUTPUT (the file or folder for it), PYTHON (the interpreter that"
	@echo "makes .venv), PYTEST_ARGS. For example: make paint PROMPT=一只熊猫 OUTPUT=panda.png"

paint: $(PAINT_STAMP) ## Set up, and paint PROMPT (红苹果) with the model inside the package
	@$(BIN)/pai-painter paint "$$PROMPT" $${OUTPUT:+--output "$$OUTPUT"}

# One thread for each of the two workers: more of them only wait for each other.
test: $(DEV_STAMP) ## Set up, and run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 $(PYTEST_ARGS)

test-slow: $(DEV_STAMP) ## Run the slow tests, too: fresh environments, training runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# What stands on transformers, diffusers, torch and peft: numbers of the original programs, generation, loading and
# saving, the pipeline, tokenizer and processors, adapters, resumed training, code that travels to the Hub.
LIBRARY_TESTS = $(addprefix tests/,model cpu test_demo_model.py test_lora.py test_lora_pipeline.py \
	training/test_trainer.py training/test_resume.py hub/test_remote_code.py)

test-newest: ## Run what depends on the libraries on the newest versions that setup.cfg allows
	test -d $(VENV)-newest || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		--editable ".[train,test]" torchao
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -m "not slow" -n 2 $(LIBRARY_TESTS) $(PYTEST_ARGS)

test-oldest: ## The same on the oldest: each `name>=version` of setup.cfg is taken as `name==version`
	test -d $(VENV)-oldest || $(PYTHON) -m venv $(VENV)-oldest
	sed -n 's/^ *\([A-Za-z0-9_-]*\)>=\([0-9.]*\).*/\1==\2/p' setup.cfg > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-oldest/constraints.txt --editable ".[train,test]"
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -m "not slow" -n 2 $(LIBRARY_TESTS) $(PYTEST_ARGS)

quality: $(DEV_STAMP) ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(DEV_STAMP) ## Measure the speed of painting against others (about five minutes on two cores)
	$(BIN)/python benchmarks/generate.py --rounds 1

bench-full: $(DEV_STAMP) ## Measure painting and training, and update the results in benchmarks/ (about an hour)
	mkdir -p benchmarks/figures
	$(BIN)/python benchmarks/generate.py --part table --part curves --part cold --json benchmarks/figures/generate.json \
		--plot benchmarks/figures/generate.png --markdown benchmarks/README.md
	$(BIN)/python benchmarks/train_step.py --json benchmarks/figures/train_step.json

demo-model: $(DEV_STAMP) ## Rebuild the demo model from scratch (about two hours on two cores)
	$(PIP_INSTALL) --editable ".[emoji]"
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/emoji/run.sh

docs: $(DEV_STAMP) ## Write docs/api.md and the table in docs/design.md from the package
	$(BIN)/python tools/make_api_reference.py
	$(BIN)/python tools/count_lines.py

build: $(DEV_STAMP) ## Build the wheel and the sdist into dist/
	$(BIN)/python -m build

clean: ## Remove .venv, build products and caches (pictures and training runs stay)
	rm -rf $(VENV) $(VENV)-newest $(VENV)-oldest build dist src/*.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys' 2>/dev/null || { echo "There is no working $(PYTHON) here;" \
		"please install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "pai-painter needs Python 3.11 or" \
		"newer, and $(PYTHON) is $$($(PYTHON) --version); please name a newer one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) could not make $(VENV); on Debian and Ubuntu" \
		"the package python3-venv is missing then." >&2; exit 1; }
	@touch $@

# Both installations are editable, so that it doesn't matter which comes first: there is one pai_painter, this clone's.
$(PAINT_STAMP): $(VENV_STAMP) $(SETUP_FILES)
	@echo "Installing pai-painter and what it needs into $(VENV) (some minutes, the first time) …"
	@$(PIP_INSTALL) --editable .
	@touch $@

# taming-transformers is a test's oracle; its declared dependencies no longer go with today's torch.
$(DEV_STAMP): $(VENV_STAMP) $(SETUP_FILES)
	@echo "Installing pai-painter with the tools for its development into $(VENV) (some minutes, the first time) …"
	@$(PIP_INSTALL) --editable ".[dev,train]"
	@$(PIP_INSTALL) --no-deps taming-transformers-rom1504==0.0.6
	@touch $@ $(PAINT_STAMP)
