"""The models of the ONNX project's own tests, through every step that reads ONNX."""
