"""PURE: the whole rollout is ``decide(snapshot, now) -> Plan``. No I/O, no clock, no Kubernetes
objects.
"""
