"""Faults on a real cluster: each is tried during a promotion and during a rollback, under load, and
the outcome must be right all the same.
"""

from __future__ import annotations


class ChaosError(RuntimeError):
    """Something a person must know or change; the text says what."""


class NotNowError(ChaosError):
    """A fault cannot be tried as things are at this moment; nothing was done."""
