"""Training of ONNX graphs with JAX: only steps that train import this package, and only the image
that trains has what it needs.
"""
