# Two images from one file:
#   docker build --target cpu  -t vim-server:cpu  .
#   docker build --target cuda -t vim-server:cuda .     (compiles two CUDA extensions; needs no GPU)
# A private package index: docker build --secret id=pip,src=pip.conf ...
# Another Python needs another lock: `python -m tools.lock_image`.
# pip's cache is a cache mount at PIP_CACHE_DIR and never part of a layer; hadolint knows only the default path.
# hadolint global ignore=DL3042
ARG PYTHON=3.11
# By digest, so that each build has the same base; docs/internals/container-image.md says how to find the present one. The digest decides:
# with another PYTHON name another BASE too.
ARG BASE=python:${PYTHON}-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
# Same CUDA release as the torch that constraints-cuda.txt pins; only its compiler is used, torch brings the libraries.
ARG CUDA=13.0
ARG TOOLKIT=nvidia/cuda:${CUDA}.1-devel-ubuntu24.04@sha256:7d2f6a8c2071d911524f95061a0db363e24d27aa51ec831fcccf9e76eb72bc92

FROM ${TOOLKIT} AS toolkit

FROM ${BASE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# ---- what Python installs: one virtual environment for each target, without pip in it
FROM base AS packages
# The cache mounts below; named here, so that it does not depend on the home of the user who builds.
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /build
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt constraints-cpu.txt constraints-cuda.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = [p['optional-dependencies'][name] for name in ('tracing', 'heic', 'grpc')]; \
        print(*p['dependencies'], *sum(extras, []), sep='\n')" > requirements.txt

# What the lock names, by its hashes; then torch, which PyTorch's CPU index has in no form that could be hashed for every
# machine: exactly the pinned version, from there, and without looking for anything else.
FROM packages AS packages-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY deploy/docker/requirements-cpu.lock ./
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --require-hashes --no-deps --requirement requirements-cpu.lock \
    && pip --python /opt/venv/bin/python install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
        --no-deps --constraint constraints-cpu.txt torch \
    && pip --python /opt/venv/bin/python check \
    && /opt/venv/bin/python -c "import torch; assert torch.version.cuda is None, 'TORCH_INDEX gave a CUDA build'"
# What only those need who compile against torch, and the packages' own tests: 260 MB.
RUN rm -rf /opt/venv/lib/python*/site-packages/torch/include /opt/venv/lib/python*/site-packages/torch/test \
    && find /opt/venv/lib/python*/site-packages -type d -name tests -prune -exec rm -rf {} + \
    && find /opt/venv/lib/python*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete

FROM packages AS packages-cuda
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --constraint constraints-cuda.txt --requirement requirements.txt triton \
    && /opt/venv/bin/python -c "import torch; assert torch.version.cuda, 'this is a CPU build of torch'"

# ---- mamba-ssm and causal-conv1d, compiled against exactly the torch above; only their wheels leave this stage
FROM packages-cuda AS kernels
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# Pinned in the constraints, where hadolint does not look.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip --python /opt/venv/bin/python install --constraint constraints-cuda.txt setuptools wheel packaging ninja
COPY deploy/docker/nvcc deploy/docker/kernels.py /build/
# Compute capabilities to compile for: 8.0 (A100; runs on 8.6 and 8.9 too), 9.0 (H100, H200). Blackwell: 10.0 or 12.0.
ARG CUDA
ARG CUDA_ARCHS="8.0;9.0"
# Each job takes about 4 GB of memory.
ARG MAX_JOBS=4
ENV CUDA_HOME=/usr/local/cuda \
    PATH=/opt/venv/bin:${PATH} \
    PYTORCH_NVCC=/build/nvcc \
    TORCH_CUDA_ARCH_LIST=${CUDA_ARCHS} \
    MAMBA_FORCE_BUILD=TRUE \
    MAMBA_KEEP_CUDA_BUILD=TRUE \
    CAUSAL_CONV1D_FORCE_BUILD=TRUE \
    MAX_JOBS=${MAX_JOBS}
# --no-deps: mamba-ssm asks for 57 packages, of which its scan needs none but torch.
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=bind,from=toolkit,source=/usr/local/cuda-${CUDA},target=/usr/local/cuda \
    chmod +x nvcc \
    && python kernels.py before \
    && pip --python /opt/venv/bin/python wheel --wheel-dir /wheels --no-deps --no-build-isolation \
        --no-binary mamba-ssm,causal-conv1d --constraint constraints-cuda.txt mamba-ssm causal-conv1d \
    && pip --python /opt/venv/bin/python install --no-deps --no-index /wheels/*.whl \
    && python kernels.py after

FROM packages-cuda AS packages-cuda-kernels
RUN --mount=type=bind,from=kernels,source=/wheels,target=/wheels \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl \
    && /opt/venv/bin/python -c "import torch, selective_scan_cuda, causal_conv1d_cuda"

# ---- the program, readable by any user whatever the umask of the checkout, and compiled because nobody can write here
FROM base AS app
WORKDIR /app
COPY LICENSE ./
COPY model ./model
COPY service ./service
COPY models/demo ./models/demo
COPY examples/images ./examples/images
COPY examples/photos ./examples/photos
RUN chmod -R u=rwX,go=rX . \
    && python -m compileall -q --invalidation-mode unchecked-hash model service

# ---- the kernels compiled for common CPUs, in a read-only folder of the program
FROM packages-cpu AS machine-code-cpu
COPY --from=app /app/model /app/model
COPY --from=app /app/models /app/models
WORKDIR /app
RUN /opt/venv/bin/python -m model.commands.precompile /machine_code

FROM packages-cuda AS machine-code-cuda
COPY --from=app /app/model /app/model
COPY --from=app /app/models /app/models
WORKDIR /app
RUN /opt/venv/bin/python -m model.commands.precompile /machine_code

# ---- what both targets share. Writable: /cache and /tmp; all else may be read-only.
FROM base AS runtime
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    LOGNAME=vim \
    VIM_HOST=0.0.0.0 \
    VIM_CACHE_DIR=/cache \
    HF_HOME=/cache/huggingface \
    NUMBA_CACHE_DIR=/cache/numba \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1
# Code in this folder is executed, so only the service's user may write. Group 0 is that of OpenShift's arbitrary users.
RUN install -d -o 10001 -g 0 -m 0770 /cache
VOLUME /cache
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
# Every 10 s from the beginning: --start-interval needs Docker 25 or buildah 1.39.
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 \
    CMD ["python", "-m", "service.server.healthcheck"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vim-server" \
      org.opencontainers.image.description="Inference server for Vision Mamba (ViM): classify and embed images over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM runtime AS cuda
# Triton compiles its launcher with gcc when the first kernel runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV CUDA_CACHE_PATH=/cache/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
COPY --from=packages-cuda-kernels /opt/venv /opt/venv
COPY --from=app /app /app
COPY --from=machine-code-cuda /machine_code /app/model/machine_code
# A number, so that Kubernetes can tell that it is not root; no account is needed, so any other number works too.
USER 10001:10001

# The last stage is what a build without --target makes.
FROM runtime AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=app /app /app
COPY --from=machine-code-cpu /machine_code /app/model/machine_code
USER 10001:10001
