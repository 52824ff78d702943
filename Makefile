# The one entry point: every target installs what it needs.
# Another Python than the one that is found: make ... PYTHON=python3.12
PYTHON ?=
# auto: PyTorch's CPU index where there is no NVIDIA driver; URL: that one; empty: only the index of pip's configuration.
TORCH_INDEX ?= auto
# For install-cuda: the toolkit, and the compute capabilities to compile for.
CUDA_HOME  ?= /usr/local/cuda
CUDA_ARCHS ?= 8.0;9.0
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints-cpu.txt
# Installs what is missing, with one line before each step; prints nothing if everything is installed.
INSTALL = PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" sh tools/install/run.sh
# For test-image: the base image, empty for one that mmdebstrap makes; and where to keep images, empty to remove them.
BASE  ?=
STORE ?=
# In these suites a skipped test is a failure (tests/no_skips.py).
OPTED_IN := $(BIN)/python -m pytest -p tests.no_skips
# $(call needs,PROGRAM,COMMAND): stop with the command that installs a program.
needs = @command -v $(1) > /dev/null || { echo "$(1) is not installed: $(2)" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install install-cuda serve test test-slow test-page test-fuzz test-clients test-triton test-ray test-image test-image-cuda chaos docs docs-site lint audit format lock image image-cuda sbom clean

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 14

install: development ## create .venv and install everything, pinned (TORCH_INDEX=URL: an extra index to take torch from)

.PHONY: serving development
serving:
	@$(INSTALL) serve
development:
	@$(INSTALL) dev

install-cuda:    ## install, then compile mamba-ssm and causal-conv1d (CUDA_HOME=DIR, CUDA_ARCHS="8.0;9.0")
	@$(INSTALL) cuda
	CUDA_HOME="$(CUDA_HOME)" $(BIN)/python deploy/docker/kernels.py before
	$(PIP) install --quiet --constraint constraints-cuda.txt setuptools wheel packaging ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" CUDA_HOME="$(CUDA_HOME)" TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" \
	  PYTORCH_NVCC="$(CURDIR)/deploy/docker/nvcc" \
	  MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE \
	  $(PIP) install --no-deps --no-build-isolation --no-binary mamba-ssm,causal-conv1d --no-cache-dir --force-reinstall \
	  --constraint constraints-cuda.txt mamba-ssm causal-conv1d
	CUDA_HOME="$(CUDA_HOME)" TORCH_CUDA_ARCH_LIST="$(CUDA_ARCHS)" $(BIN)/python deploy/docker/kernels.py after

serve: serving   ## install what serving needs, and serve the demo model (settings: VIM_*)
	$(BIN)/python -m service serve

# Three processes also on two cores, because many tests wait. By default xdist begins with the files of most tests: then
# single long tests are left for the end, and one process runs them alone.
test: development ## install everything, and run the tests in three processes (one process: ARGS="-n 0 tests/model")
	@$(if $(ARGS),,echo "The tests take about 7 minutes on two cores.")
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow: development ## run the tests that take long: kernels in Triton's interpreter, dry runs, wheels, exhausted resources
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

test-page: development ## run the demo page's tests in Chromium (apt-get install chromium)
	$(call needs,chromium,apt-get install chromium)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[browser]"
	$(OPTED_IN) tests/browser $(ARGS)

test-fuzz: development ## requests generated from the OpenAPI document by schemathesis (SEED="2 3": other requests)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[fuzz]"
	FUZZ_SEEDS="$(SEED)" $(OPTED_IN) tests/e2e/test_openapi.py $(ARGS)

test-clients: development ## run the real clients, each in a separate environment (ARGS="--only core")
	$(BIN)/python -m tests.clients $(ARGS)

test-triton: development ## compile the kernels for GPUs with Triton 3.6.0 as well, which torch 2.11 has (no GPU needed)
	$(PIP) install --quiet --no-deps --upgrade --target build/triton-3.6.0 triton==3.6.0
	PYTHONPATH=build/triton-3.6.0 $(OPTED_IN) tests/model/backends/triton/test_ahead_of_time.py \
	  tests/model/backends/triton/test_issue_model.py $(ARGS)

test-ray: development ## run the application on a local Ray, in a separate environment
	$(BIN)/python -m venv .ray
	.ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "ray[serve]"
	$(BIN)/python -c "import site; print(*site.getsitepackages(), sep='\n')" \
	  > "$$(.ray/bin/python -c 'import site; print(site.getsitepackages()[0])')/ours.pth"
	$(OPTED_IN) tests/deploy/test_ray.py $(ARGS)

test-image: development ## build the CPU image without Docker and run it (BASE=pull: the real base; STORE=DIR: keep the layers)
	TEST_IMAGE=1 BASE="$(BASE)" STORE="$(STORE)" TORCH_INDEX="$(TORCH_INDEX)" $(OPTED_IN) -s tests/deploy/image/test_cpu_image.py $(ARGS)

test-image-cuda: development ## build the CUDA image's stages that need no GPU and no CUDA toolkit (6 GB)
	TEST_IMAGE=1 BASE="$(BASE)" STORE="$(STORE)" $(OPTED_IN) -s tests/deploy/image/test_cuda_image.py $(ARGS)

chaos: development ## long runs of real faults under load, with a table (ARGS="--times 3 --only kills")
	$(BIN)/python -m tests.e2e.chaos $(ARGS)

.PHONY: bench
bench: development ## this service beside LitServe, mosec, BentoML, Ray Serve and FastAPI (ARGS="--quick --peers mosec")
	$(BIN)/python -m bench.serve $(ARGS)

docs: development   ## write the generated tables of the documentation
	$(BIN)/python -m tools.doc_tables

docs-site: development ## the documentation as a site, in build/site (a broken link is an error)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: development   ## ruff and mypy, both strict; who may import whom; the dependencies, as far as no network is needed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.audit

audit: development  ## ask for known vulnerabilities of the pinned versions, CPU and CUDA (pip-audit; needs the network)
	$(PIP) install --quiet pip-audit
	@echo "Libraries inside wheels, which pip-audit does not see:"
	$(BIN)/python -m tools.libraries
	mkdir -p build && cat constraints.txt constraints-cpu.txt constraints-cuda.txt | grep -v '^-c' | sort -u > build/audit.txt
	$(BIN)/pip-audit --no-deps --disable-pip --requirement build/audit.txt

format: development ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: development ## write the CPU image's lock, with hashes (after a change of dependencies; asks the package index)
	$(BIN)/python -m tools.lock_image

sbom: development ## the CPU image's bill of materials, CycloneDX: build/sbom.cdx.json
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
