# Every verb makes its own virtual environment in .venv and installs what it misses; `make help` lists them.
# PYTHON=/path/to/python3 chooses the interpreter, ARGS="..." is handed to the tool: make test ARGS="-k supervisor".

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
export PYTHON
PYTHON ?=
BIN := .venv/bin
ARGS ?=
# Most tests wait for something, so that two files at a time keep two cores busy. One after the other: make test WORKERS=0
WORKERS ?= 2

# Tests that need root are left out for everybody else, with what only they need, and we say so.
ifeq ($(shell id -u),0)
MAY :=
TEST_PACKAGES := packages-demo packages-test
else
MAY := -m "not root"
TEST_PACKAGES := packages-demo
endif

.PHONY: help demo test fast lint type docs bench clean packages-%

help:  ## list the verbs
	@sed -n 's/^\([a-z]*\):.*##/\1/p' $(MAKEFILE_LIST) | while read -r verb text; do printf '  make %-6s %s\n' "$$verb" "$$text"; done

demo: .venv/.ready-demo packages-demo  ## a small fleet rolls from one build to the next, on a real ZooKeeper
	@$(BIN)/deployd demo $(ARGS)

test: .venv/.ready-test $(TEST_PACKAGES)  ## all tests
	@[ "$$(id -u)" = 0 ] || echo "not root: the tests marked root (namespaces, mounts) are left out" >&2
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile $(MAY) $(ARGS)

fast: .venv/.ready-test  ## the unit tests, in seconds
	@$(BIN)/pytest -q tests/unit $(ARGS)

lint: .venv/.ready-lint  ## ruff, and the arrows between modules
	@$(BIN)/ruff check $(ARGS) .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

type: .venv/.ready-lint  ## mypy --strict
	@$(BIN)/mypy $(ARGS)

docs: .venv/.ready-docs  ## the documentation as a site, into site/; a broken link fails
	@$(BIN)/mkdocs build --strict --quiet $(ARGS) && echo "site/index.html"

bench: .venv/.ready-demo packages-demo packages-test packages-bench  ## the numbers, as ratios against other tools in one run
	@missed=; for file in bench/[!_]*.py; do \
	  echo "== $$file"; $(BIN)/python -P "$$file" $(ARGS) || missed="$$missed $$file"; \
	done; [ -z "$$missed" ] || { echo "past a target, or failed:$$missed" >&2; exit 1; }

clean:  ## remove everything that was made here
	rm -rf .venv .tox .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

packages-%:
	@tools/install-system-packages $*

.venv/.ready-%: pyproject.toml
	@tools/set-up $*
	@touch $@
