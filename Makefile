# `make help` lists what there is. Every target installs what it needs into $(VENV) first.
# Where an environment is already there: make zero PYTHON=python3 VENV=
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs

ifeq ($(strip $(VENV)),)
BIN_PYTHON := $(PYTHON)
INSTALLED :=
else
BIN_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
endif
R1LITE = $(BIN_PYTHON) -m r1lite.cli
FOR_TESTS = test,deepspeed

# What `make zero`, `make r1` and `make distill` run: the recipe of that name for weights of the hub where there is a GPU
# and they can be had, else the tiny world's.
RECIPE ?= $(shell scripts/pick_recipe.sh $@)

.PHONY: help install zero r1 distill base check test bench clean

help:  ## this list
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
	@echo; echo "RECIPE=recipes/... overrides the recipe; SET='stages.zero.seed=1 ...' overrides values; RUNS=dir is where runs go."

install: $(INSTALLED)  ## make .venv and install r1lite into it (with vLLM where there is an NVIDIA GPU)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "r1lite needs Python 3.11 or newer; $(PYTHON) is older: make install PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make environments: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".$$(nvidia-smi -L >/dev/null 2>&1 && echo '[gpu]')"
	@touch $@

zero:  ## R1-Zero: RL from a base model, then pass@1 before and after
r1:  ## R1, which goes on from Zero: cold start, RL, rejection sampling, SFT from the base, RL for all scenarios
distill:  ## R1 teaches a smaller model, beside the same model by RL alone

zero r1 distill: $(INSTALLED)
	@scripts/pick_recipe.sh $@ --why $(RECIPE)
	$(R1LITE) run $(RECIPE) --runs $(RUNS) $(foreach value,$(SET),--set $(value))

base: $(INSTALLED)  ## pre-train the tiny base model that the repository ships
	$(R1LITE) run recipes/tiny/base.yaml --runs $(RUNS) $(foreach value,$(SET),--set $(value))

check: $(INSTALLED)  ## check every recipe, and say what is wrong with it
	@for recipe in recipes/tiny/*.yaml; do $(R1LITE) check $$recipe || exit $$?; done

test: $(INSTALLED)  ## lint, types and all tests
	$(if $(INSTALLED),$(BIN_PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[$(FOR_TESTS)]")
	$(BIN_PYTHON) -m ruff check .
	$(BIN_PYTHON) -m ruff format --check .
	$(BIN_PYTHON) -m mypy
	OMP_NUM_THREADS=1 $(BIN_PYTHON) -m pytest -q -m "not alone and not gpu" -n logical --maxprocesses 8
	$(BIN_PYTHON) -m pytest -q -m "alone or gpu"

bench: $(INSTALLED)  ## speed of a step, of rollouts, grading and the sandbox, as ratios in one run
	$(BIN_PYTHON) bench/grpo_step.py tiny
	$(BIN_PYTHON) bench/rollouts.py
	$(BIN_PYTHON) bench/grading.py
	$(BIN_PYTHON) bench/sandbox.py

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
