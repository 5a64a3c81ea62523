"""Google Cloud Storage, by its XML API."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from obstore.store import GCSStore

from modelrollout import nesting
from modelrollout.contract.common import Location
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.backend import DOCUMENT, SENT, Scheme, incomplete, read_secret
from modelrollout.optimizer.store.bucket import SIGNED_FOR, Bucket, client_options, opened_with
from modelrollout.telemetry.redaction import hide

_KEY = "GOOGLE_SERVICE_ACCOUNT_KEY"
# All of the key that is used. The rest of a file may name a place that requests go to
# (gcs_base_url): that is for the configuration to say.
_FIELDS = {"client_email": SENT, "private_key": DOCUMENT, "private_key_id": SENT}
# For anonymous access. Without it obstore would ask the metadata service whom it writes as, also
# with skip_signature.
_ANONYMOUS: dict[str, Any] = {**dict.fromkeys(_FIELDS, ""), "gcs_base_url": "", "disable_oauth": True}
_ALGORITHM = "GOOG4-RSA-SHA256"


def _endpoint(location: Location) -> str:
    return (location.endpoint or "https://storage.googleapis.com").rstrip("/")


def _account(folder: Path, field: str) -> tuple[dict[str, str], rsa.RSAPrivateKey]:
    """A service account's key: as obstore takes it, and to sign with."""
    wrong = incomplete(
        field,
        folder,
        f"has no {_KEY} with the JSON key of a service account ({', '.join(_FIELDS)}); Google Cloud Storage"
        " needs it",
    )
    try:
        content = nesting.parse(read_secret(folder, _KEY, field, DOCUMENT) or "")
        account = {name: content[name] for name in _FIELDS}
        if not all(
            isinstance(account[name], str) and account[name] and form.fullmatch(account[name])
            for name, form in _FIELDS.items()
        ):
            raise wrong
        key = serialization.load_pem_private_key(hide(account["private_key"]).encode(), password=None)
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm):
        raise wrong from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise wrong
    return account, key


def signed(url: str, method: str, email: str, key: rsa.RSAPrivateKey, now: datetime) -> str:
    """The address, opened for a while (V4 signing). obstore signs for Google's own host whatever
    the endpoint is.
    """
    parts = urlsplit(url)
    scope = f"{now:%Y%m%d}/auto/storage/goog4_request"
    query = urlencode(
        {
            "X-Goog-Algorithm": _ALGORITHM,
            "X-Goog-Credential": f"{email}/{scope}",
            "X-Goog-Date": f"{now:%Y%m%dT%H%M%SZ}",
            "X-Goog-Expires": str(int(SIGNED_FOR.total_seconds())),
            "X-Goog-SignedHeaders": "host",
        },
        quote_via=quote,
        safe="",
    )
    request = [method, parts.path, query, f"host:{parts.netloc}", "", "host", "UNSIGNED-PAYLOAD"]
    digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
    text = "\n".join([_ALGORITHM, f"{now:%Y%m%dT%H%M%SZ}", scope, digest])
    signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{url}?{query}&X-Goog-Signature={signature.hex()}"


def _open(location: Location, uri: SplitResult, secret: Path | None, field: str) -> Bucket:
    base = f"{_endpoint(location)}/{uri.netloc}"
    account, key = _account(secret, field) if secret else (_ANONYMOUS, None)
    with opened_with(secret, field):
        store = GCSStore(
            uri.netloc,
            config={
                "base_url": _endpoint(location),
                "service_account_key": json.dumps(account),
                "skip_signature": secret is None,
            },
            client_options=client_options(location),
            retry_config=backend.RETRY,
        )
    if key is None:
        return Bucket(store, lambda _, path: f"{base}/{quote(path)}")
    return Bucket(
        store,
        lambda method, path: signed(
            f"{base}/{quote(path)}", method, account["client_email"], key, datetime.now(UTC)
        ),
    )


GS = Scheme(
    open=_open,
    address=_endpoint,
    decode=str,
    encode=str,
    lists=True,
    redirect_remedy="correct the store's endpoint: redirects of Google Cloud Storage are not followed",
)
