# SPDX-License-Identifier: Apache-2.0
# The app for Docker Spaces and any server. The demo needs no network once the image is built.
#   docker build -t slim-compare . && docker run -p 7860:7860 slim-compare
#   docker run --gpus all -p 7860:7860 slim-compare
#   docker build --build-arg TORCH_INDEX=… -t slim-compare .
FROM python:3.12-slim

# The index to take PyTorch from. The default one's wheels run on processors and on NVIDIA GPUs, and are large; PyTorch's
# own index for processors makes a smaller image.
ARG TORCH_INDEX=

# Spaces run containers as this user.
RUN useradd --create-home --uid 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    HF_HOME=/home/user/.cache/huggingface \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    GRADIO_TEMP_DIR=/home/user/.cache/gradio \
    SLIM_HOST=0.0.0.0 \
    SLIM_PORT=7860
WORKDIR /home/user/app

# Before the code: a change in it does not install everything again.
COPY --chown=user requirements.txt .
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --user "$(grep '^torch[<>=]' requirements.txt)" --index-url "$TORCH_INDEX"; \
    fi \
    && pip install --user -r requirements.txt

COPY --chown=user . .

EXPOSE 7860
# The first page answers even where a password is asked for.
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD python -c "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['SLIM_PORT'], timeout=8)"
CMD ["python", "app.py"]
