# Images from one source: `operator` (the operator, the feedback service, the command line), `optimizer` (what the Jobs run), and the optimizer's
# flavours, each with the heavy libraries that only some Jobs need. A flavour adds a layer to those of the optimizer, so a node keeps the rest once.
# BASE is any Debian with Python 3.11 or later as python3, and pip. TORCH_BASE is Debian 13 (its PyTorch 2.6 for the CPU is then installed), or any image
# with python3, its venv, pip, and a later PyTorch.
# Dependencies come before the source, so that a change of the source rebuilds one small layer.
ARG BASE=python:3.11-slim
ARG TORCH_BASE=debian:trixie-slim

FROM ${BASE} AS base
RUN python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/modelrollout PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /tmp

FROM base AS source
COPY operator/modelrollout /opt/modelrollout/modelrollout
RUN python -m compileall -q /opt/modelrollout

FROM base AS jobs
COPY requirements/job.txt /opt/requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /opt/requirements/job.txt
ENTRYPOINT ["python", "-m", "modelrollout.optimizer"]

FROM jobs AS optimizer
COPY --from=source /opt/modelrollout /opt/modelrollout
USER 65532:65532

# JAX, for optimization steps that train: `trainer.image` in the chart's values.
FROM jobs AS trainer
COPY requirements/trainer.txt /opt/requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /opt/requirements/trainer.txt
COPY --from=source /opt/modelrollout /opt/modelrollout
USER 65532:65532

# The libraries of scikit-learn, XGBoost and LightGBM models: `trees.image`. LightGBM takes OpenMP from the system.
FROM jobs AS trees
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY requirements/trees.txt /opt/requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /opt/requirements/trees.txt
COPY --from=source /opt/modelrollout /opt/modelrollout
USER 65532:65532

# TensorFlow and LiteRT, for models of TensorFlow, Keras and TFLite: `tensorflow.image`.
FROM jobs AS tensorflow
COPY requirements/tensorflow.txt /opt/requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /opt/requirements/tensorflow.txt
COPY --from=source /opt/modelrollout /opt/modelrollout
USER 65532:65532

# PyTorch, for its own models: `pytorch.image`. Its wheel on PyPI brings gigabytes of CUDA, Debian's package is for the CPU; so this one stands alone.
FROM ${TORCH_BASE} AS pytorch
RUN python3 -c 'import torch' 2>/dev/null || { apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends python3-torch python3-venv python3-pip && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv --without-pip --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/modelrollout PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /tmp
COPY requirements/pytorch.txt /opt/requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /opt/requirements/pytorch.txt
COPY operator/modelrollout /opt/modelrollout/modelrollout
RUN python -m compileall -q /opt/modelrollout
USER 65532:65532
ENTRYPOINT ["python", "-m", "modelrollout.optimizer"]

FROM base AS operator
COPY requirements/operator.txt /opt/requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -r /opt/requirements/operator.txt
# The source is not installed as a distribution; the command is this line.
RUN printf '#!/opt/venv/bin/python\nfrom modelrollout.cli.main import main\nmain()\n' > /opt/venv/bin/modelrollout && chmod 755 /opt/venv/bin/modelrollout
COPY --from=source /opt/modelrollout /opt/modelrollout
USER 65532:65532
ENTRYPOINT ["modelrollout"]
CMD ["run"]
