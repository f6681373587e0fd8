# syntax=docker/dockerfile:1
#
#   docker build -t dscl .                                  serve: small, without torch
#   docker build -t dscl --build-arg EXTRAS=milvus .        … with optional parts of pyproject.toml
#   docker build -t dscl-train --target train .             train: with torch, for NVIDIA GPUs
#
# scripts/run_dockerfile.py executes the RUN, HEALTHCHECK and CMD lines without a Docker engine.

FROM python:3.11-slim-bookworm AS base
# Numeric user without an account: nothing to look up, and Kubernetes can tell that it is not root.
# HOME is the one place that is writable under a read-only root file system (a tmpfs on /tmp).
ENV PATH="/opt/dscl/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp

# What is only needed to install: the final stages take /opt/dscl from it, and no sources.
FROM base AS source
WORKDIR /app
RUN python -m venv /opt/dscl
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY index ./index
COPY service ./service
COPY training ./training

FROM source AS serve-installed
ARG EXTRAS=""
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/dscl/bin/pip install --disable-pip-version-check -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"

FROM source AS train-installed
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/dscl/bin/pip install --disable-pip-version-check -c constraints.txt ".[train]"

# PyPI's torch for Linux brings the CUDA libraries; the driver comes from the host, through the
# NVIDIA Container Toolkit (docker run --gpus all).
FROM base AS train
COPY --from=train-installed /opt/dscl /opt/dscl
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TORCH_HOME=/data/.cache/torch
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["dscl"]
CMD ["train", "--help"]

# The last stage is what `docker build` makes without --target.
FROM base AS serve
COPY --from=serve-installed /opt/dscl /opt/dscl
# A volume that is made for photos belongs to whom the folder here belongs to.
RUN install -d -o 1000 -g 1000 /data/photos
USER 1000:1000
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/health/ready', timeout=2)"]
# Listens for other containers, and so refuses to start without access keys (DSCL_KEYS_FILE), unless
# DSCL_INSECURE=1 says that whoever reaches it may change the gallery.
ENTRYPOINT ["dscl"]
CMD ["serve", "--gallery", "/data/gallery", "--host", "0.0.0.0"]
