"""JSON of others, read to a depth that is the same in every process.

Python's reader ends where the recursion limit of the process says, which a library may raise (that
of CEL does), and how much of it is left depends on who calls. So what is readable would be another
thing here and there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100  # nothing that is read is half as deep; the reader gets to nearly 1,000
_CONTAINERS = frozenset({dict, list})


class TooDeepError(ValueError):
    """It is nested more than MAX_DEPTH deep."""

    def __init__(self) -> None:
        super().__init__(f"it is nested more than {MAX_DEPTH} deep")


def parse(raw: str | bytes, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value; ValueError if it is no JSON, or nested more than MAX_DEPTH deep."""
    try:
        value = json.loads(raw, parse_constant=parse_constant)
    except RecursionError:
        raise TooDeepError from None
    if is_deeper(value, MAX_DEPTH):
        raise TooDeepError
    return value


def is_deeper(value: Any, most: int) -> bool:
    """Whether lists and maps are nested more than ``most`` deep; found without recursion."""
    level = [value] if type(value) in _CONTAINERS else []
    depth = 0
    while level:
        depth += 1
        if depth > most:
            return True
        level = [
            child
            for outer in level
            for child in (outer.values() if type(outer) is dict else outer)
            if type(child) in _CONTAINERS
        ]
    return False
