"""Routers: what a split of the traffic looks like in the cluster, and whether the data plane has
taken it up. PURE.
"""
