"""URIs that say where something is and nothing else.

A URI stands in specs, statuses, events, logs and the environment of pods, where many people can
read it, so it must not carry credentials. telemetry.redaction masks the URIs that do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class StoreKind:
    """What everyone has to know of a kind of store; ``optimizer.store`` reads and writes there."""

    name: str  # for messages
    form: str  # how its URIs are written
    secret: str  # what the Secret that opens it has
    # whether its requests may be redirected to the places in redirectsTo
    follows_redirects: bool
    on_host: bool = False  # whether its URIs say which host has it
    needs_endpoint: str = ""  # where a store has no endpoint of its own: how one is written
    keeps_artifacts: bool = True  # whether it can be written
    # Of a kind whose URIs pin what they name (NAME@PIN): their form, for RE2 and Python alike.
    pattern: str = ""


_S3 = StoreKind(
    "S3", "s3://BUCKET/KEY", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", follows_redirects=False
)
_GS = StoreKind(
    "Google Cloud Storage", "gs://BUCKET/KEY", "GOOGLE_SERVICE_ACCOUNT_KEY", follows_redirects=False
)
_AZURE = StoreKind(
    "Azure",
    "az://CONTAINER/KEY",
    "AZURE_STORAGE_SAS_TOKEN, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    follows_redirects=False,
    needs_endpoint="https://ACCOUNT.blob.core.windows.net",
)
_HTTP = StoreKind(
    "HTTP",
    "http(s)://HOST/PATH",
    "token, or username and password",
    follows_redirects=True,
    on_host=True,
)
_HF = StoreKind(
    "Hugging Face",
    "hf://ORG/NAME@COMMIT/PATH",
    "token",
    follows_redirects=True,
    keeps_artifacts=False,
    pattern=r"^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*@[0-9a-f]{40}/[^\s]+$",
)
_OCI = StoreKind(
    "a registry",
    "oci://REGISTRY/REPOSITORY@sha256:DIGEST/FILE",
    "username and password",
    follows_redirects=True,
    on_host=True,
    keeps_artifacts=False,
    pattern=r"^oci://[^/\s]+/[a-z0-9]+(([.]|__?|-+|/)[a-z0-9]+)*@sha256:[0-9a-f]{64}(/[^\s]+)?$",
)
# the kinds of stores by the scheme of their URIs
STORE_KINDS: Mapping[str, StoreKind] = {
    "s3": _S3,
    "gs": _GS,
    "az": _AZURE,
    "abfs": _AZURE,
    "http": _HTTP,
    "https": _HTTP,
    "hf": _HF,
    "oci": _OCI,
}
_KINDS = tuple(dict.fromkeys(STORE_KINDS.values()))
# schemes whose URIs may lead to other bytes tomorrow
FOLLOWED = tuple(scheme for scheme, kind in STORE_KINDS.items() if not kind.pattern)
FORMS = " or ".join(kind.form for kind in _KINDS)
SECRETS = "; ".join(f"{kind.name}: {kind.secret}" for kind in _KINDS)
# a URI in some kind of store, and the beginning of one; RE2 and Python read them alike
PATTERN = "|".join(
    [
        rf"^({'|'.join(FOLLOWED)})://[^\s]+$",
        *(kind.pattern for kind in _KINDS if kind.pattern),
    ]
)
# with a host, a bucket or an organization: "s3:///" would hold all of S3
PREFIX_PATTERN = rf"^({'|'.join(STORE_KINDS)})://[^\s/][^\s]*$"
# A query, a fragment; an @ in the authority; a colon in it (not within an IPv6 address) that begins
# no port. RE2 and Python read it alike.
CARRIES_MORE = r"[?#]|^[^/]*//[^/]*@|^[^/]*//[^/:\[]*:[^/]*[^/0-9]"
_MUST_NOT = (
    "a URI must not carry a user name, password, query or fragment, because everyone can read them here"
)
INSTEAD = (
    f"{_MUST_NOT}; leave them out, put the store's credentials into a Secret (kubectl explain"
    " modeldeployment.spec.model.credentials.secretRef says which keys) and name it in credentials:"
    " {secretRef: {name: ...}}"
)
PREFIX_INSTEAD = (
    f"{_MUST_NOT}; write the prefix without them: ModelDeployments name the Secret that opens the store"
)


def carries_more(uri: str) -> bool:
    """Whether the URI holds more than a place: user information, a query or a fragment."""
    return re.search(CARRIES_MORE, uri) is not None


def lies_in(uri: str, prefix: str) -> bool:
    """Whether ``uri`` lies in ``prefix``, which ends at a path separator: s3://models does not hold
    s3://models-2/x. Where URIs are pinned, hf://ORG/NAME holds every commit of it.
    """
    base = prefix.rstrip("/")
    kind = STORE_KINDS.get(uri.partition("://")[0])
    inside = uri.startswith(base + "/") or (
        kind is not None and bool(kind.pattern) and uri.startswith(base + "@")
    )
    # also before an @, and as HTTP writes it: who sends the path may take it for a way out
    return inside and ".." not in re.split("[/@]", unquote(uri))


def lies_below(uri: str, folder: str) -> bool:
    """Whether ``uri`` lies below ``folder`` and is written plainly: no ``..``, no empty parts, no
    characters that readers may decode differently.
    """
    base = f"{folder.rstrip('/')}/"
    parts = uri.removeprefix(base).rstrip("/").split("/")
    return uri.startswith(base) and all(
        re.fullmatch(r"[\w.-]+", part, re.ASCII) and part.strip(".") for part in parts
    )


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http(s) URL, in one form; raises ValueError where it has none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no http(s) URL with a host")
    return parts.scheme, parts.hostname.lower(), parts.port or (443 if parts.scheme == "https" else 80)
