"""Azure Blob Storage. The account is that of the store's endpoint: a URI names a container only, so
that no user chooses whom a Job asks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, urlencode

from obstore.store import AzureStore

from modelrollout.contract.common import Location
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.backend import Scheme, incomplete, read_secret
from modelrollout.optimizer.store.bucket import SIGNED_FOR, Bucket, client_options, opened_with
from modelrollout.optimizer.store.http_client import Fault
from modelrollout.reasons import Reason
from modelrollout.telemetry.redaction import hide

_NAME, _KEY, _SAS = (f"AZURE_STORAGE_{name}" for name in ("ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN"))
# obstore wants the name of an account also where nothing is signed with it
_NO_ACCOUNT = "none"
# of a signature that opens one object; the parts of what is signed follow from it
_VERSION = "2022-11-02"


def _endpoint(location: Location) -> str:
    return (location.endpoint or "").rstrip("/")


def _decoded(key: str | None) -> bytes:
    """The bytes of an account's key; none if it is not one."""
    try:
        return base64.b64decode(key or "", validate=True)
    except (binascii.Error, ValueError):
        return b""


def _signature(account: str, key: bytes, name: str, now: datetime) -> str:
    """A query that opens the object (``CONTAINER/KEY``) to be read for a while.

    obstore signs names as they are encoded in a URL, which the store refuses where that makes a
    difference.
    """
    begin, end = (f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in (now - SIGNED_FOR, now + SIGNED_FOR))
    parts = ["r", begin, end, f"/blob/{account}/{name}", "", "", "", _VERSION, "b", *[""] * 7]
    signature = hmac.new(key, "\n".join(parts).encode(), hashlib.sha256).digest()
    return urlencode(
        {
            "sv": _VERSION,
            "sr": "b",
            "sp": "r",
            "st": begin,
            "se": end,
            "sig": base64.b64encode(signature).decode(),
        }
    )


def _is_over(sas: str, now: datetime) -> bool:
    """Whether a signature of the user's is valid no more, by its own words."""
    (end,) = parse_qs(sas).get("se", [""])[:1]
    try:
        moment = datetime.fromisoformat(end)
    except ValueError:
        return False
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) < now


def _open(location: Location, uri: SplitResult, secret: Path | None, field: str) -> Bucket:
    if not _endpoint(location):
        raise bad_input(
            Reason.TASK_INVALID,
            f"{field}: the store has no endpoint; set it in the operator's configuration, for example"
            " https://ACCOUNT.blob.core.windows.net",
        )
    account, key, sas = (read_secret(secret, key, field) if secret else None for key in (_NAME, _KEY, _SAS))
    if secret and not sas and not (account and _decoded(key)):
        raise incomplete(
            field,
            secret,
            f"has neither {_SAS} nor {_NAME} and {_KEY} (in base64); Azure needs one of them",
        )
    base = f"{_endpoint(location)}/{uri.netloc}"

    def unsigned(_: str, path: str) -> str:
        return f"{base}/{quote(path)}"

    if sas:
        query = hide(sas.removeprefix("?"))

        def opened(method: str, path: str) -> str:
            if _is_over(query, datetime.now(UTC)):  # not every store says so
                raise Fault("Expired")
            return f"{unsigned(method, path)}?{query}"

        with opened_with(secret, field):
            store = _connect(uri.netloc, location, sas_key=query, credential_type="sas_token")
        return Bucket(store, opened)
    if account and key:
        secret_bytes = _decoded(hide(key))
        with opened_with(secret, field):
            store = _connect(
                uri.netloc, location, account_name=account, account_key=key, credential_type="access_key"
            )
        return Bucket(
            store,
            lambda method, path: (
                f"{unsigned(method, path)}?"
                + _signature(account, secret_bytes, f"{uri.netloc}/{path}", datetime.now(UTC))
            ),
        )
    return Bucket(_connect(uri.netloc, location, skip_signature=True), unsigned)


def _connect(container: str, location: Location, **keys: Any) -> AzureStore:
    """``credential_type`` among the keys: variables of the pod, as workload identity sets them,
    must not choose another one.
    """
    options: dict[str, Any] = {"account_name": _NO_ACCOUNT, "endpoint": _endpoint(location), **keys}
    return AzureStore(
        container, client_options=client_options(location), retry_config=backend.RETRY, **options
    )


AZURE = Scheme(
    open=_open,
    address=_endpoint,
    decode=str,
    encode=str,
    lists=True,
    redirect_remedy="correct the store's endpoint: redirects of Azure are not followed",
)
