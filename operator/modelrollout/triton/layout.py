"""Names in a Triton model repository: ``<model>/config.pbtxt`` and ``<model>/<number>/model.onnx``,
or what another backend reads there.

Imports nothing: init containers need it and should start fast.
"""

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"  # the weights of a model that is too large for one file
CONFIG_FILE = "config.pbtxt"
WARMUP = "zeros-"  # begins the names of the warm-up requests that are ours; the batch size follows
# Beside the model's folder, a link to that of its version, for paths that are written before model
# and number are known.
VERSION_LINK = ".version"
# Files of an artifact whose names begin so lie beside the folder of the version, with config.pbtxt.
BESIDE = "@model/"
