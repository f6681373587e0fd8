# syntax=docker/dockerfile:1
#
#   docker build -t dscl .                          serve: small, without torch
#   docker build -t dscl-train --target train .     train: with torch
#
FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
RUN useradd --create-home --uid 1000 dscl
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY index ./index
COPY service ./service

FROM base AS train
COPY training ./training
RUN pip install -c constraints.txt '.[train]'
USER 1000
WORKDIR /data
ENTRYPOINT ["dscl"]
CMD ["train", "--help"]

# The last stage is what `docker build` makes without --target.
FROM base AS serve
RUN pip install -c constraints.txt .
USER 1000
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/ready', timeout=2)"]
# Inside a container every address is the container's own: what reaches it is decided by the
# published port (docker-compose.yml publishes it on the host's loopback only).
ENTRYPOINT ["dscl"]
CMD ["serve", "--gallery", "/data/gallery", "--host", "0.0.0.0", "--insecure"]
