# SPDX-License-Identifier: Apache-2.0
# The app for Docker Spaces and any server. The demo needs no network once the image is built.
#   docker build -t slim-compare . && docker run -p 7860:7860 slim-compare
#   docker build --build-arg TORCH_BACKEND=cu130 -t slim-compare . && docker run --gpus all -p 7860:7860 slim-compare
FROM python:3.12-slim

# Spaces run containers as user 1000.
RUN useradd --create-home --uid 1000 user
USER 1000
ENV HOME=/home/user \
    VIRTUAL_ENV=/home/user/venv \
    PATH=/home/user/venv/bin:$PATH \
    HF_HOME=/home/user/.cache/huggingface \
    GRADIO_TEMP_DIR=/home/user/.cache/gradio \
    GRADIO_ANALYTICS_ENABLED=False \
    PYTHONUNBUFFERED=1 \
    SLIM_HOST=0.0.0.0 \
    SLIM_PORT=7860
WORKDIR /home/user/app

# Which build of PyTorch: cpu, or one for the GPUs at hand, such as cu130 or rocm7.2. uv knows where each is.
ARG TORCH_BACKEND=cpu
# Before the code: a change in it does not install everything again.
COPY --chown=1000 requirements.txt .
RUN python -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir "uv>=0.13,<1" \
    && uv pip install --no-cache --compile-bytecode --torch-backend "$TORCH_BACKEND" -r requirements.txt

COPY --chown=1000 . .

EXPOSE 7860
# The first page answers even where a password is asked for.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['SLIM_PORT'], timeout=8)"]
CMD ["python", "app.py"]
