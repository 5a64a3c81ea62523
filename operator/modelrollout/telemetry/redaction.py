"""Removes secrets from what leaves a process: logs, events, messages."""

from __future__ import annotations

import re

from modelrollout.api.uris import masked_text

_MASK = "***"

# Secrets that this process has read. One set for the process, so that no caller can forget it.
_KNOWN: set[str] = set()

# Quotes and backslashes end a value, so that blotting it out leaves the JSON line whole.
_VALUE = r"[^\s\"'\\,;&<>]"
_PATTERNS = [
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"]*?(?:-----END [A-Z ]*PRIVATE KEY-----|(?=\")|$)"),
        _MASK,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"), _MASK),  # JSON web token
    (re.compile(rf"(?i)\b(bearer)\s+{_VALUE}{{8,}}"), rf"\1 {_MASK}"),
    # with a digit or padding, or it may be a word
    (re.compile(r"(?i)\b(basic)\s+(?=\w*[\d=])[\w+/]{8,}=*"), rf"\1 {_MASK}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bhf_\w{20,}"), _MASK),
    (
        re.compile(
            r"(?i)((?:password|passwd|pwd|token|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|credential|signature|authorization)"
            rf"\\?[\"']?\s*[:=]\s*\\?[\"']?)(?:bearer |basic )?{_VALUE}{{4,}}"
        ),
        rf"\1{_MASK}",
    ),
]


def hide(value: str) -> str:
    """Remember ``value`` as a secret of this process; returns it."""
    if value:
        _KNOWN.add(value)
    return value


def redact_known(text: str) -> str:
    """``text`` without the secrets that this process has read, and with its URIs masked.

    The longest secret goes first, so that one inside another leaves no rest. Jobs, whose messages
    name fields such as ``signature``, know their secrets and need no guesses.
    """
    for secret in sorted(_KNOWN, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return masked_text(text)


def redact(text: str) -> str:
    """``redact_known``, and without what looks like a token, key or password."""
    text = redact_known(text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
