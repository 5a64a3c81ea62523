"""S3, of AWS and of what speaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult

import obstore
from obstore.store import S3Store

from modelrollout.contract.common import Location
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.backend import Scheme, incomplete, read_secret
from modelrollout.optimizer.store.bucket import SIGNED_FOR, Bucket, client_options, faults, opened_with
from modelrollout.telemetry.redaction import hide

# For anonymous access. These keys sign nothing that anyone reads: of the signed address only the
# part before the query is used.
_NO_KEYS = {"access_key_id": "none", "secret_access_key": "none"}


def _connect(bucket: str, location: Location, keys: Mapping[str, Any]) -> S3Store:
    return S3Store(
        bucket,
        endpoint=location.endpoint,
        region=location.region or "us-east-1",
        virtual_hosted_style_request=location.endpoint is None,
        client_options=client_options(location),
        retry_config=backend.RETRY,
        **keys,
    )


def _keys(folder: Path, field: str) -> dict[str, str]:
    access, secret, token = (
        read_secret(folder, f"AWS_{key}", field)
        for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    )
    if not access or not secret:
        missing = " and ".join(
            key
            for key, value in (("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret))
            if not value
        )
        raise incomplete(field, folder, f"has no {missing}; S3 needs both keys")
    keys = {"access_key_id": access, "secret_access_key": hide(secret)}
    return keys | {"session_token": hide(token)} if token else keys


def _signed(store: S3Store) -> Callable[[str, str], str]:
    """Addresses of objects that open them for a while."""

    def address(method: str, path: str) -> str:
        with faults():
            return str(obstore.sign(store, cast(Any, method), path, SIGNED_FOR))

    return address


def _open(location: Location, uri: SplitResult, secret: Path | None, field: str) -> Bucket:
    if secret:
        with opened_with(secret, field):
            store = _connect(uri.netloc, location, _keys(secret, field))
        return Bucket(store, _signed(store))
    # Without keys obstore would ask the cloud's metadata service: anonymous has to be explicit.
    store = _connect(uri.netloc, location, {"skip_signature": True})
    address = _signed(_connect(uri.netloc, location, _NO_KEYS))
    return Bucket(store, lambda method, path: address(method, path).partition("?")[0])


S3 = Scheme(
    open=_open,
    address=lambda location: location.endpoint or "https://s3",
    decode=str,
    encode=str,
    lists=True,
    redirect_remedy="correct the store's endpoint and region: redirects of S3 are not followed",
)
