"""Host names and wildcards, as the Gateway API compares them: ``*.example.com`` is every name below
example.com, at any depth, but not example.com itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

WILDCARD = "*."
NAMESPACE = "{{namespace}}"  # in a policy's pattern: the namespace of the ModelDeployment
ANY = "*"


def covers(pattern: str, name: str) -> bool:
    """Whether all of ``name``, which may be a wildcard itself, lies in ``pattern``."""
    return pattern in (ANY, name) or (pattern.startswith(WILDCARD) and name.endswith(pattern[1:]))


def overlap(one: str, other: str) -> bool:
    """Whether some name is covered by both."""
    return covers(one, other) or covers(other, one)


def wildcards_over(name: str) -> Iterator[str]:
    """The wildcards that cover ``name``, without itself."""
    rest = name.removeprefix(WILDCARD)
    while "." in rest:
        rest = rest.partition(".")[2]
        yield f"{WILDCARD}{rest}"


def allowed(patterns: Iterable[str], namespace: str, name: str) -> bool:
    """Whether a policy's patterns allow a ModelDeployment of that namespace this name."""
    return any(covers(pattern.replace(NAMESPACE, namespace), name) for pattern in patterns)
