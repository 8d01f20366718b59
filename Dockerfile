# GPU: docker build -t neurolm .                       run with: docker run --gpus all -v /data:/data neurolm python train_vq.py ...
# CPU: docker build -t neurolm --build-arg TORCH_FROM="--index-url ADDRESS" .   the address that pytorch.org names for CPUs
# On another base with Python 3.11 or later: --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04
#
# PyPI's torch brings its own CUDA libraries, so that the host needs the NVIDIA driver and container toolkit only.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

RUN python3 -c 'import ensurepip, venv' || \
    (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /neurolm
COPY requirements.txt .
ARG TORCH_FROM=
RUN python3 -m venv /opt/venv && \
    pip install --no-cache-dir ${TORCH_FROM} "$(grep '^torch==' requirements.txt)" && \
    pip install --no-cache-dir -r requirements.txt
COPY . .
CMD ["python", "predict.py", "--help"]
