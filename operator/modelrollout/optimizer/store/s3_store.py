"""S3.

Reads go through our own client, to addresses that obstore signs: obstore follows every redirect,
takes what it finds there for the object, and sends a session's token along. obstore writes, lists
and deletes. Its messages are never passed on: they are pages long, and a store's error body may
echo what was sent. The words that ``_fault`` looks for are stable in object_store 0.14, and held by
tests against a real HTTP server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import SplitResult

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from modelrollout.contract.common import Location
from modelrollout.jobs.errors import denied
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.backend import Listed, Scheme, read_secret
from modelrollout.optimizer.store.http_client import Client, Fault, fault_of
from modelrollout.reasons import Reason
from modelrollout.telemetry.redaction import hide

if TYPE_CHECKING:
    from obstore.store import ClientConfig

# obstore's own limit of 30 s is for a whole request, body included: too short for gigabytes. A dead
# connection is seen by read_timeout.
_TIMEOUTS: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "6h"}
_SIGNED_FOR = timedelta(minutes=15)  # until a request begins, on clocks that need not agree

# For anonymous access. These keys sign nothing that anyone reads: of the signed address only the
# part before the query is used.
_NO_KEYS = {"access_key_id": "none", "secret_access_key": "none"}


class _S3:
    """A bucket."""

    def __init__(self, bucket: str, location: Location, keys: Mapping[str, str] | None) -> None:
        # Without keys obstore would ask the cloud's metadata service: anonymous has to be explicit.
        self._store = _connect(bucket, location, keys or {"skip_signature": True})
        address = _signed(self._store) if keys else _unsigned(_connect(bucket, location, _NO_KEYS))
        self._client = Client(address, backend.RETRY)

    def size(self, path: str) -> int:
        return self._client.size(path)

    def get(self, path: str) -> tuple[int, Generator[bytes, None, None]]:
        return self._client.get(path)

    def put(self, path: str, content: bytes | Path, *, create: bool) -> bool:
        with _faults():
            try:
                obstore.put(self._store, path, content, mode="create" if create else "overwrite")
            except AlreadyExistsError:
                return False
            except BaseError as error:
                if not create or "status code: 501" not in str(error):
                    raise
                obstore.put(self._store, path, content)  # the store cannot create conditionally
        return True

    def list(self, path: str) -> Iterator[Listed]:
        with _faults():
            for chunk in obstore.list(self._store, prefix=path or None):
                for entry in chunk:
                    name = entry["path"].removeprefix(path).lstrip("/")
                    yield Listed(name, entry["size"], entry["last_modified"])

    def delete(self, path: str) -> None:
        with _faults():
            obstore.delete(self._store, path)


def _connect(bucket: str, location: Location, keys: Mapping[str, Any]) -> S3Store:
    return S3Store(
        bucket,
        endpoint=location.endpoint,
        region=location.region or "us-east-1",
        virtual_hosted_style_request=location.endpoint is None,
        client_options={**_TIMEOUTS, "allow_http": location.allow_http},
        retry_config=backend.RETRY,
        **keys,
    )


def _signed(store: S3Store) -> Callable[[str, str], str]:
    """Addresses of objects that open them for a while."""

    def address(method: str, path: str) -> str:
        with _faults():
            return str(obstore.sign(store, cast(Any, method), path, _SIGNED_FOR))

    return address


def _unsigned(store: S3Store) -> Callable[[str, str], str]:
    signed = _signed(store)
    return lambda method, path: signed(method, path).partition("?")[0]


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise _fault(error) from None


def _fault(error: BaseError | FileNotFoundError) -> Fault:
    """obstore's error as ours, by the words in its message."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return fault_of(404, text)
    # DeleteObjects reports a refusal with status 200
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or "(code: AccessDenied)" in text:
        return Fault("Refused")
    if "dns error" in text:
        return Fault("NotResolved")
    if "incorrectly configured region" in text:
        return Fault("WrongRegion")
    if status := re.search(r"non-2xx status code: (\d{3})", text):
        if status[1].startswith("3"):
            return Fault("Redirected", detail="redirects what is written or listed")
        return fault_of(int(status[1]), text)
    return Fault("Certificate" if "certificate" in text.lower() else "Unreachable")


def _keys(folder: Path, field: str) -> dict[str, str]:
    access, secret, token = (
        read_secret(folder, f"AWS_{key}") for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    )
    if not access or not secret:
        missing = " and ".join(
            key
            for key, value in (("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret))
            if not value
        )
        raise denied(
            Reason.CREDENTIALS_INCOMPLETE,
            f"{field}: the Secret {folder.name!r} has no {missing}; S3 needs both keys",
        )
    keys = {"access_key_id": access, "secret_access_key": hide(secret)}
    return keys | {"session_token": hide(token)} if token else keys


def _open(location: Location, uri: SplitResult, secret: Path | None, field: str) -> _S3:
    return _S3(uri.netloc, location, _keys(secret, field) if secret else None)


S3 = Scheme(
    open=_open,
    address=lambda location: location.endpoint or "https://s3",
    decode=str,
    encode=str,
    lists=True,
    redirect_remedy="correct the store's endpoint and region: redirects of S3 are not followed",
)
