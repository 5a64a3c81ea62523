"""URIs that say where something is and nothing else; and older ones, or those of strangers, shown
without what is nobody's business.

A URI stands in specs, statuses, events, logs and the environment of pods, where many may read it:
what opens a store does not belong into it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# A query, a fragment; an @ in the authority; a colon in it (not within an IPv6 address) that begins
# no port. RE2 and Python read it alike.
CARRIES_MORE = r"[?#]|^[^/]*//[^/]*@|^[^/]*//[^/:\[]*:[^/]*[^/0-9]"
_MUST_NOT = "a URI must not carry a user name, password, query or fragment, for everybody can read them here"
INSTEAD = (
    f"{_MUST_NOT}; leave them out, put what the store asks for into a Secret (S3: AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY; HTTP: token, or username and password) and name it in credentials: {secretRef:"
    " {name: ...}}"
)
PREFIX_INSTEAD = (
    f"{_MUST_NOT}; write the prefix without them: ModelDeployments name the Secret that opens the store"
)

HIDDEN = "***"
_LONGEST = 4096  # twice what a URI may have; nothing of a longer one is worth showing
_HOST = re.compile(r"(?:[^/?#@:\[\]\\]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
# Ends where a word or a JSON string does (a quote within is escaped there); what ends a sentence is
# given back. The scheme has an end, or a long word would be looked through anew from each of its
# letters.
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://(?:[^ \t\n\r\f\v\"\\]|\\.)+")
_SENTENCE_ENDS = ".,;:)]}>'\\…"


def carries_more(uri: str) -> bool:
    """Whether the URI holds more than a place: user information, a query or a fragment."""
    return re.search(CARRIES_MORE, uri) is not None


def lies_below(uri: str, folder: str) -> bool:
    """Whether ``uri`` is a place below ``folder``, written plainly: without steps back, empty
    parts, and what may be read in two ways.
    """
    base = f"{folder.rstrip('/')}/"
    parts = uri.removeprefix(base).rstrip("/").split("/")
    return uri.startswith(base) and all(
        re.fullmatch(r"[\w.-]+", part, re.ASCII) and part.strip(".") for part in parts
    )


def masked(uri: str) -> str:
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


def masked_text(text: str) -> str:
    """``text`` with every URI in it masked: for messages, events and logs."""

    def shown(found: re.Match[str]) -> str:
        uri = found[0].rstrip(_SENTENCE_ENDS)
        return masked(uri) + found[0][len(uri) :]

    return _IN_TEXT.sub(shown, text)


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http(s) URL, in one form; raises ValueError where it has none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no http(s) URL with a host")
    return parts.scheme, parts.hostname.lower(), parts.port or (443 if parts.scheme == "https" else 80)
