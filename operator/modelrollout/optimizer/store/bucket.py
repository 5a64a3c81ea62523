"""Buckets of S3, Google Cloud Storage and Azure.

Reads go through our own client, to signed addresses: obstore follows every redirect,
takes what it finds there for the object, and sends a session's token along. obstore writes, lists
and deletes. Its messages are never passed on: they are pages long, and a store's error body may
echo what was sent. The words that ``_fault`` looks for are stable in object_store 0.14, and held by
tests against a real HTTP server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from modelrollout.contract.common import Location
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.backend import Listed, incomplete
from modelrollout.optimizer.store.http_client import Client, Fault, Newer, fault_of, is_expired

if TYPE_CHECKING:
    from obstore.store import ClientConfig

# obstore's own limit of 30 s is for a whole request, body included: too short for gigabytes. A dead
# connection is seen by read_timeout.
_TIMEOUTS: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "6h"}
SIGNED_FOR = timedelta(minutes=15)  # until a request begins, on clocks that need not agree
_REFUSED = re.compile(r"\(code: (AccessDenied|403)\)")


class Bucket:
    """An open bucket: ``address`` says where ``Client`` reads an object, ``store`` does the
    rest.
    """

    def __init__(self, store: S3Store | GCSStore | AzureStore, address: Callable[[str, str], str]) -> None:
        self._store = store
        self._client = Client(address, backend.RETRY)

    def size(self, path: str) -> int:
        return self._client.size(path)

    def get(self, path: str) -> tuple[int, Generator[bytes, None, None]]:
        return self._client.get(path)

    def newer(self, path: str, etag: str | None) -> Newer | None:
        return self._client.newer(path, etag)

    def put(self, path: str, content: bytes | Path, *, create: bool) -> bool:
        with faults():
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
        with faults():
            for chunk in obstore.list(self._store, prefix=path or None):
                for entry in chunk:
                    name = entry["path"].removeprefix(path).lstrip("/")
                    yield Listed(name, entry["size"], entry["last_modified"])

    def delete(self, path: str) -> None:
        with faults():
            obstore.delete(self._store, path)


def client_options(location: Location) -> ClientConfig:
    """Of obstore's own requests."""
    return {**_TIMEOUTS, "allow_http": location.allow_http}


@contextmanager
def opened_with(secret: Path | None, field: str) -> Iterator[None]:
    """Around what connects with the keys of a Secret: what obstore says of keys that it cannot use
    may repeat them.
    """
    try:
        yield
    except BaseError:
        if secret is None:
            raise
        raise incomplete(
            field, secret, "has keys that cannot be used; compare them with those that the store gave"
        ) from None


@contextmanager
def faults() -> Iterator[None]:
    """Turns what obstore raises into a Fault."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        raise _fault(error) from None


def _fault(error: BaseError | FileNotFoundError) -> Fault:
    """obstore's error as ours, by the words in its message."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return fault_of(404, text)
    if is_expired(text):
        return Fault("Expired")
    # what deletes many objects reports a refusal of one within a success
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or _REFUSED.search(text):
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
