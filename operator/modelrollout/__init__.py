"""Roll out machine-learning models on Kubernetes: optimize, verify, serve with Triton, judge on
evidence.
"""
