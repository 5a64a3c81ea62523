"""Kubernetes quantities (``500m``, ``2Gi``) as numbers."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity


def quantity(value: Any) -> Decimal:
    """The number that the text or number stands for; raises ValueError where it is no quantity."""
    return Decimal(parse_quantity(value))  # type: ignore[no-untyped-call]
