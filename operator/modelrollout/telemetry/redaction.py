"""Text without secrets: what looks like a token, a key or a password, and URIs that carry more than
a place. Imports nothing of this project.
"""

from __future__ import annotations

import json
import re

HIDDEN = "***"
# Secrets that this process has read. One set for the process, so that no caller can forget it.
_KNOWN: set[str] = set()
_SHORTEST = 6  # characters of a secret that is removed from texts
_LONGEST = 4096  # twice what a URI may have; of a longer one only the scheme is shown
_HOST = re.compile(r"(?:[^/?#@:\[\]\\]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
# Ends with the word or the JSON string (in which a quote is escaped); punctuation after it is kept.
# The scheme is bounded, or matching would be quadratic in the length of a word.
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://(?:[^ \t\n\r\f\v\"\\]|\\.)+")
_SENTENCE_ENDS = ".,;:)]}>'\\…"


# Quotes and backslashes end a value, so that the JSON line stays valid without it.
_VALUE = r"[^\s\"'\\,;&<>]"
_SECRETS = [
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\"]*?(?:-----END [A-Z ]*PRIVATE KEY-----|(?=\")|$)"),
        "***",
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*"), "***"),  # JSON web token
    (re.compile(rf"(?i)\b(bearer)\s+{_VALUE}{{8,}}"), r"\1 ***"),
    # with a digit or padding, or it may be a word
    (re.compile(r"(?i)\b(basic)\s+(?=\w*[\d=])[\w+/]{8,}=*"), r"\1 ***"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bhf_\w{20,}"), "***"),
    (
        re.compile(
            r"(?i)((?:password|passwd|pwd|token|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|credential|signature|authorization)"
            rf"\\?[\"']?\s*[:=]\s*\\?[\"']?)(?:bearer |basic )?{_VALUE}{{4,}}"
        ),
        r"\1***",
    ),
]


def hide(value: str) -> str:
    """Remember ``value`` as a secret of this process, also as exceptions and JSON write it; returns
    it. A few letters are in every text: without them no message could be read, and a registry
    could give such a token.
    """
    if len(value) >= _SHORTEST:
        sent = [value.encode(coding, "replace") for coding in ("utf-8", "latin-1")]
        quoted = (json.dumps(value), *map(repr, (value, *sent)))
        _KNOWN.update((value, *(text.partition(text[-1])[2][:-1] for text in quoted)))
    return value


def redact_known(text: str) -> str:
    """``text`` without the secrets that this process has read, and with its URIs masked.

    The longest secret goes first, so that one inside another leaves no rest. Jobs, whose messages
    name fields such as ``signature``, know their secrets and need no guesses.
    """
    for secret in sorted(_KNOWN, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return mask_uris(text)


def redact(text: str) -> str:
    """``redact_known``, and without what looks like a token, a key or a password."""
    text = redact_known(text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def mask_uri(uri: str) -> str:
    """The URI with ``***`` in place of user information, query and fragment. Never fails, also not
    on invalid URIs.
    """
    scheme, sep, place = uri.partition("://")
    if not sep:
        return uri
    if len(place) > _LONGEST:
        return f"{scheme}://{HIDDEN}"
    user = ""
    # A password may contain characters that end an authority; then the rest is not a valid host.
    while "@" in place and not _HOST.fullmatch(re.split(r"[/?#]", place, maxsplit=1)[0]):
        user, place = f"{HIDDEN}@", place.partition("@")[2]
    extra = re.search(r"[?#]", place)
    return f"{scheme}://{user}{place if extra is None else place[: extra.end()] + HIDDEN}"


def mask_uris(text: str) -> str:
    """``text`` with every URI in it masked, for messages, events and logs."""

    def mask(match: re.Match[str]) -> str:
        uri = match[0].rstrip(_SENTENCE_ENDS)
        return mask_uri(uri) + match[0][len(uri) :]

    return _IN_TEXT.sub(mask, text)
