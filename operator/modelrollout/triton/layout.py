"""Names in a Triton model repository: ``<model>/config.pbtxt`` and ``<model>/<number>/model.onnx``.

Imports nothing: init containers need it and should start fast.
"""

MODEL_FILE = "model.onnx"
CONFIG_FILE = "config.pbtxt"
