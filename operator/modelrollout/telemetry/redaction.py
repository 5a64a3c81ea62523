"""Text without secrets: what looks like a token, a key or a password, and URIs that carry more than
a place. Imports nothing of this project.
"""

from __future__ import annotations

import re

HIDDEN = "***"
_LONGEST = 4096  # twice what a URI may have; nothing of a longer one is worth showing
_HOST = re.compile(r"(?:[^/?#@:\[\]\\]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
# Ends where a word or a JSON string does (a quote within is escaped there); what ends a sentence is
# given back. The scheme has an end, or a long word would be looked through anew from each of its
# letters.
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://(?:[^ \t\n\r\f\v\"\\]|\\.)+")
_SENTENCE_ENDS = ".,;:)]}>'\\…"


# Quotes and backslashes end a value, so that blotting it out leaves the JSON line whole.
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


def redact(text: str) -> str:
    """``text`` without what looks like a token, key or password, and its URIs without users and
    queries.
    """
    text = mask_uris(text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def mask_uri(uri: str) -> str:
    """The URI without user information, query and fragment; where there were some, ``***`` says so.
    Also for what is no proper URI.
    """
    scheme, sep, place = uri.partition("://")
    if not sep:
        return uri
    if len(place) > _LONGEST:
        return f"{scheme}://{HIDDEN}"
    user = ""
    # A password may hold what ends an authority: then what is left of it reads like no host.
    while "@" in place and not _HOST.fullmatch(re.split(r"[/?#]", place, maxsplit=1)[0]):
        user, place = f"{HIDDEN}@", place.partition("@")[2]
    found = re.search(r"[?#]", place)
    return f"{scheme}://{user}{place if found is None else place[: found.end()] + HIDDEN}"


def mask_uris(text: str) -> str:
    """``text`` with every URI in it masked: for messages, events and logs."""

    def shown(found: re.Match[str]) -> str:
        uri = found[0].rstrip(_SENTENCE_ENDS)
        return mask_uri(uri) + found[0][len(uri) :]

    return _IN_TEXT.sub(shown, text)
