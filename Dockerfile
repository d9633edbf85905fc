# The package and its commands. Not built by the project's tests, which have no Docker.
#
#   docker build -t generations .                                   # CPU
#   docker build -t generations --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
#   docker run -v "$PWD/data:/app/data" -v "$PWD/models:/app/models" generations train --help
#
# PyTorch's package brings its own CUDA libraries, so the second base is for tools beside it; with
# either, `docker run --gpus all` shows the GPUs to it.
ARG BASE=python:3.11-slim
FROM ${BASE}
RUN command -v python3 >/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*)
WORKDIR /app
COPY . .
RUN python3 -m venv .venv && .venv/bin/python -m pip install --no-cache-dir -r requirements.txt
ENTRYPOINT ["/app/.venv/bin/generations"]
CMD ["--help"]
