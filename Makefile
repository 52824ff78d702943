# The one entry point: every target installs what it needs.
PYTHON ?= python3
# Where else to look for torch; on Linux without a GPU: https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# For install-cuda: the toolkit, and the compute capabilities to compile for.
CUDA_HOME  ?= /usr/local/cuda
CUDA_ARCHS ?= 8.0;9.0
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints-cpu.txt
# For test-image: the base image, empty for one that mmdebstrap makes; and where to keep images, empty to remove them.
BASE  ?=
STORE ?=
# In these suites a skipped test is a failure (tests/no_skips.py).
OPTED_IN := $(BIN)/python -m pytest -p tests.no_skips
# $(call needs,PROGRAM,COMMAND): stop with the command that installs a program.
needs = @command -v $(1) > /dev/null || { echo "$(1) is not installed: $(2)" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install install-cuda serve test test-page test-fuzz test-clients test-triton test-ray test-image test-image-cuda chaos docs lint audit format lock image image-cuda sbom clean

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 14

install: $(STAMP) ## create .venv and install everything, pinned (TORCH_INDEX=URL: an extra index to take torch from)
$(STAMP): pyproject.toml setup.py client/pyproject.toml constraints.txt constraints-cpu.txt constraints-cuda.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint $(CONSTRAINTS) \
	  --editable ".[dev]" --editable ./client
	@touch $@

install-cuda: CONSTRAINTS := constraints-cuda.txt
install-cuda: $(STAMP) ## install, then compile mamba-ssm and causal-conv1d (CUDA_HOME=DIR, CUDA_ARCHS="8.0;9.0")
	CUDA_HOME="$(CUDA_HOME)" $(BIN)/python deploy/docker/kernels.py before
	$(PIP) install --quiet --constraint constraints-cuda.txt setuptools wheel packaging ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" CUDA_HOME="$(CUDA_HOME)" TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" \
	  PYTORCH_NVCC="$(CURDIR)/deploy/docker/nvcc" \
	  MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE \
	  $(PIP) install --no-deps --no-build-isolation --no-binary mamba-ssm,causal-conv1d --no-cache-dir --force-reinstall \
	  --constraint constraints-cuda.txt mamba-ssm causal-conv1d
	CUDA_HOME="$(CUDA_HOME)" TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" $(BIN)/python deploy/docker/kernels.py after

serve: $(STAMP)  ## serve the demo model (settings: VIM_*)
	$(BIN)/python -m service serve

test: $(STAMP)   ## run the tests in two processes (one process: ARGS="-n 0 tests/model")
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-page: $(STAMP) ## run the demo page's tests in Chromium (apt-get install chromium)
	$(call needs,chromium,apt-get install chromium)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[browser]"
	$(OPTED_IN) tests/browser $(ARGS)

test-fuzz: $(STAMP) ## requests generated from the OpenAPI document by schemathesis (SEED="2 3": other requests)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[fuzz]"
	FUZZ_SEEDS="$(SEED)" $(OPTED_IN) tests/e2e/test_openapi.py $(ARGS)

test-clients: $(STAMP) ## run the real clients, each in an environment of its own (ARGS="--only core")
	$(BIN)/python -m tests.clients $(ARGS)

test-triton: $(STAMP) ## compile the kernels for GPUs with Triton 3.6.0 as well, which torch 2.11 has (no GPU needed)
	$(PIP) install --quiet --no-deps --upgrade --target build/triton-3.6.0 triton==3.6.0
	PYTHONPATH=build/triton-3.6.0 $(OPTED_IN) tests/model/backends/triton/test_ahead_of_time.py \
	  tests/model/backends/triton/test_issue_model.py $(ARGS)

test-ray: $(STAMP) ## run the application on a local Ray, in an environment of its own beside ours
	$(PYTHON) -m venv .ray
	.ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "ray[serve]"
	$(BIN)/python -c "import site; print(*site.getsitepackages(), sep='\n')" \
	  > "$$(.ray/bin/python -c 'import site; print(site.getsitepackages()[0])')/ours.pth"
	$(OPTED_IN) tests/deploy/test_ray.py $(ARGS)

test-image: $(STAMP) ## build the CPU image without Docker and run it (BASE=pull: the real base; STORE=DIR: keep the layers)
	TEST_IMAGE=1 BASE="$(BASE)" STORE="$(STORE)" TORCH_INDEX="$(TORCH_INDEX)" $(OPTED_IN) -s tests/deploy/image/test_cpu_image.py $(ARGS)

test-image-cuda: $(STAMP) ## build the CUDA image's stages that need no GPU and no CUDA toolkit (6 GB)
	TEST_IMAGE=1 BASE="$(BASE)" STORE="$(STORE)" $(OPTED_IN) -s tests/deploy/image/test_cuda_image.py $(ARGS)

chaos: $(STAMP)  ## long runs of real faults under load, with a table (ARGS="--times 3 --only kills")
	$(BIN)/python -m tests.e2e.chaos $(ARGS)

.PHONY: bench
bench: $(STAMP)  ## this service beside LitServe, mosec, BentoML, Ray Serve and FastAPI (ARGS="--quick --peers mosec")
	$(BIN)/python -m bench.serve $(ARGS)

docs: $(STAMP)   ## write the README's generated tables anew
	$(BIN)/python -m tools.doc_tables

lint: $(STAMP)   ## ruff and mypy, both strict; who may import whom; the dependencies, as far as no network is needed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.audit

audit: $(STAMP)  ## ask for known vulnerabilities of the pinned versions (pip-audit; needs the network)
	$(PIP) install --quiet pip-audit
	$(BIN)/pip-audit --no-deps --disable-pip --requirement constraints.txt

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP)   ## write the CPU image's lock anew, with hashes (after a change of dependencies; asks the package index)
	$(BIN)/python -m tools.lock_image

sbom: $(STAMP)   ## the CPU image's bill of materials, CycloneDX: build/sbom.cdx.json
	$(BIN)/python -m tools.sbom build/sbom.cdx.json

image:           ## build the CPU image (docker)
	$(call needs,docker,https://docs.docker.com/engine/install)
	docker build --target cpu --tag vim-server:cpu .

image-cuda:      ## build the CUDA image (docker; no GPU needed)
	$(call needs,docker,https://docs.docker.com/engine/install)
	docker build --target cuda --build-arg CUDA_ARCHS="$(CUDA_ARCHS)" --tag vim-server:cuda .

clean:           ## remove .venv, the clients' environments, caches and what builds leave behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .ray .clients build *.egg-info \
	  client/build client/*.egg-info
