"""Routers: the objects that a split of the traffic needs, and whether the data plane carries it.
Pure.
"""
