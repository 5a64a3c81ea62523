"""PURE builders of Kubernetes objects. The same input gives the same object; nothing is read and
nothing is written here.
"""
