# The service for GPUs or for CPUs only, selected by one argument:
#
#   docker build --tag resnet-serve:cuda .
#   docker build --tag resnet-serve:cpu --build-arg DEVICE=cpu .
#
# torch from the default package index includes the CUDA libraries, so the GPU image needs no CUDA
# base: the host adds its driver through the NVIDIA container toolkit. The same torch runs on CPUs.
# The argument TORCH_INDEX_URL adds another index, from PyTorch's installation page: the index of CPU
# builds makes the CPU image gigabytes smaller, one of an older CUDA suits an older driver.
#
# The digest is that of the image for all platforms. To renew it, take what
# `docker buildx imagetools inspect python:3.11-slim-bookworm` prints first.
FROM python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore


# A separate stage, so that the next one is rebuilt only when this list changes, not with every
# change of pyproject.toml.
FROM base AS requirements
WORKDIR /build
COPY pyproject.toml .
RUN python -c "import tomllib; \
    project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = project['optional-dependencies']; \
    always = project['dependencies'] + extras['interchange'] + extras['grpc']; \
    print(*always, sep='\n', file=open('requirements.txt', 'w')); \
    print(*extras['cpu'], sep='\n', file=open('cpu.txt', 'w')); \
    print(*extras['gpu'], sep='\n', file=open('cuda.txt', 'w'))"


FROM base AS dependencies
ARG TORCH_INDEX_URL=
WORKDIR /build
COPY constraints.txt .
COPY --from=requirements /build/*.txt .
# The cache survives a failed or repeated build and is not part of the image.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install \
        --constraint constraints.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
        --requirement requirements.txt
# Without this check, a GPU image with a torch without CUDA would serve from the CPU and look
# healthy. DEVICE comes this late so that both images can share the layers above.
ARG DEVICE=cuda
RUN /opt/venv/bin/python -c "import sys, torch; \
    sys.exit(None if '$DEVICE' == 'cpu' or ('$DEVICE' == 'cuda' and torch.version.cuda) else \
    'DEVICE must be cpu, or cuda with a torch for CUDA; it is $DEVICE with ' + torch.__version__)"
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --constraint constraints.txt --requirement "$DEVICE.txt"


FROM base AS wheel
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY service service
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .


FROM base
# A number for Kubernetes' runAsNonRoot; a name because libraries ask for one.
RUN groupadd --gid 10001 resnet-serve \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp \
        --shell /usr/sbin/nologin resnet-serve
COPY --from=dependencies /opt/venv /opt/venv
# Installed here and not in the venv's stage: a source change then adds one small layer over the
# gigabytes of dependencies, and only that layer is pushed and pulled.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl
# SageMaker starts the image with this one argument, and expects port 8080 unless it names another.
RUN printf '%s\n' '#!/bin/sh' \
        'export SAGEMAKER_BIND_TO_PORT="${SAGEMAKER_BIND_TO_PORT:-8080}"' \
        'exec resnet-serve serve "$@"' > /usr/local/bin/serve \
 && chmod 755 /usr/local/bin/serve
# The workflow that pushes images adds what a build cannot know: source, revision, time.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      org.opencontainers.image.title=resnet-serve \
      org.opencontainers.image.description="Serves ResNets over HTTP: batched, measured, and truthful under load" \
      org.opencontainers.image.version=0.1.0 \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.base.name=docker.io/library/python:3.11-slim-bookworm
# A new volume mounted here gets this folder's owner.
RUN install --directory --owner=10001 --group=10001 /cache
# The root file system may be read-only: the service writes only below /tmp, or to /cache if set.
# It needs API keys, or RESNET_SERVE_ALLOW_ANONYMOUS=true, because it listens beyond loopback: on
# IPv4, or with RESNET_SERVE_HOST=:: on IPv6 as well, which some networks of containers lack.
# Of the driver, the container toolkit adds the libraries for computing, for NVML, and for decoding.
# GPUs are counted as `nvidia-smi` counts them, not the fastest first.
ENV PATH=/opt/venv/bin:$PATH \
    CUDA_DEVICE_ORDER=PCI_BUS_ID \
    HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RESNET_SERVE_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Ready, not live: readers of a container's health (`up --wait`, `depends_on`, a load balancer) want
# to know whether to send requests. Docker does not restart unhealthy containers; Kubernetes has its
# own probes. It finds the service by the same variables and settings file, not by flags of `serve`.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["resnet-serve", "health"]
CMD ["resnet-serve", "serve"]
