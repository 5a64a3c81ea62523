"""A real Kubernetes cluster on one machine, without Docker: the demo, the tests and the benchmarks
run on it.
"""
