# Images from one source: `operator` (the operator, the feedback service, the command line), `optimizer` (what the Jobs run), `trainer` (the same
# with JAX, for optimization steps that train), `trees` (the same with the libraries of scikit-learn, XGBoost and LightGBM models) and `tensorflow`
# (the same with those of TensorFlow, Keras and TFLite models).
# They share no dependencies to speak of, so neither carries the other's weight. BASE is any image with Python 3.11 or later as python3.
# Dependencies come before the source, so that a change of the source rebuilds one small layer.
ARG BASE=python:3.11-slim

FROM ${BASE} AS optimizer
COPY requirements/job.txt /opt/requirements.txt
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /opt/requirements.txt \
    && /opt/venv/bin/pip uninstall -qy pip setuptools
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/modelrollout PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY operator/modelrollout /opt/modelrollout/modelrollout
RUN python -m compileall -q /opt/modelrollout
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "modelrollout.optimizer"]

# `images.trainer` of the operator's configuration.
FROM ${BASE} AS trainer
COPY requirements/trainer.txt /opt/requirements.txt
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /opt/requirements.txt \
    && /opt/venv/bin/pip uninstall -qy pip setuptools
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/modelrollout PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY operator/modelrollout /opt/modelrollout/modelrollout
RUN python -m compileall -q /opt/modelrollout
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "modelrollout.optimizer"]

# `images.trees` of the operator's configuration.
FROM ${BASE} AS trees
# LightGBM takes OpenMP from the system.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY requirements/trees.txt /opt/requirements.txt
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /opt/requirements.txt \
    && /opt/venv/bin/pip uninstall -qy pip setuptools
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/modelrollout PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY operator/modelrollout /opt/modelrollout/modelrollout
RUN python -m compileall -q /opt/modelrollout
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "modelrollout.optimizer"]

# `images.tensorflow` of the operator's configuration.
FROM ${BASE} AS tensorflow
COPY requirements/tensorflow.txt /opt/requirements.txt
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /opt/requirements.txt \
    && /opt/venv/bin/pip uninstall -qy pip setuptools
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/modelrollout PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
COPY operator/modelrollout /opt/modelrollout/modelrollout
RUN python -m compileall -q /opt/modelrollout
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["python", "-m", "modelrollout.optimizer"]

FROM ${BASE} AS operator
COPY requirements/operator.txt /opt/requirements.txt
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /opt/requirements.txt \
    && /opt/venv/bin/pip uninstall -qy pip setuptools
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/modelrollout PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
# The source is not installed as a distribution; the command is this line.
RUN printf '#!/opt/venv/bin/python\nfrom modelrollout.cli.main import main\nmain()\n' > /opt/venv/bin/modelrollout && chmod 755 /opt/venv/bin/modelrollout
COPY operator/modelrollout /opt/modelrollout/modelrollout
RUN python -m compileall -q /opt/modelrollout
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["modelrollout"]
CMD ["run"]
