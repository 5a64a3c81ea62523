"""Objects in a store of any kind: streamed, hashed, limited in size, and every failure a reason of
its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from modelrollout.api import uris
from modelrollout.contract.common import CREDENTIALS_DIR, Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError, bad_input, denied, retryable
from modelrollout.optimizer.store.backend import Listed
from modelrollout.optimizer.store.http_client import Fault
from modelrollout.optimizer.store.schemes import SCHEMES
from modelrollout.reasons import Reason

Advance = Callable[[int, int | None], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class Fetched:
    """What was read: hexadecimal SHA-256 and bytes."""

    sha256: str
    size: int


def _credentials_folder(location: Location, root: Path, field: str) -> Path | None:
    if location.credentials is None:
        return None
    folder = root / location.credentials
    # The mount is optional: a Secret that does not exist is seen as a folder with nothing but the
    # kubelet's own "..data".
    if (
        folder.parent != root
        or not folder.is_dir()
        or all(entry.name.startswith("..") for entry in folder.iterdir())
    ):
        raise denied(
            Reason.CREDENTIALS_MISSING,
            f"{field}: the Secret with its credentials is empty or not there; create it in this namespace, or"
            " correct secretRef.name",
        )
    return folder


class ObjectStore:
    """A place in a store: one object, or a folder of objects below it. ``field`` is what error
    messages name.
    """

    def __init__(
        self,
        location: Location,
        field: str,
        credentials_root: Path = Path(CREDENTIALS_DIR),
        *,
        bucket: bool = False,
    ) -> None:
        """``bucket``: the URI may also be a whole bucket."""
        self.field = field
        self.uri = location.uri
        self._anonymous = location.credentials is None
        if uris.carries_more(location.uri):
            raise bad_input(Reason.URI_INVALID, f"{field}: {uris.INSTEAD}")
        try:
            parts = urlsplit(location.uri)
            _ = parts.port
        except ValueError:  # its text may hold the whole URI
            raise bad_input(Reason.URI_INVALID, f"{field}: not a URI; write {uris.FORMS}") from None
        scheme = SCHEMES.get(parts.scheme)
        if scheme is None:
            raise bad_input(
                Reason.UNSUPPORTED_SCHEME,
                f"{field}: {parts.scheme or 'no scheme'!r} is not supported; write {uris.FORMS}",
            )
        self._scheme = scheme
        self._prefix = parts.path.strip("/")
        names = scheme.decode(self._prefix)
        whole = bucket and not names
        if not parts.netloc or not (names or whole):
            raise bad_input(
                Reason.URI_INVALID, f"{field}: {location.uri!r} names no object; write {uris.FORMS}"
            )
        if not whole and any(part in ("", ".", "..") for part in names.split("/")):
            raise bad_input(
                Reason.URI_INVALID,
                f"{field}: {location.uri!r} has an empty, '.' or '..' segment in its path; write the key"
                " without them",
            )
        if scheme.address(location).startswith("http://") and not location.allow_http:
            raise bad_input(
                Reason.INSECURE_STORE,
                f"{field}: plain http is not allowed for this store; use https, or set allowHttp for it in"
                " the operator's configuration",
            )
        secret = _credentials_folder(location, credentials_root, field)
        self._backend = scheme.open(location, parts, secret, field)

    def _path(self, name: str) -> str:
        """The path of an object below this place, as the backend takes it."""
        return "/".join(part for part in (self._prefix, self._scheme.encode(name)) if part)

    @contextmanager
    def _reasons(self, name: str = "") -> Iterator[None]:
        """Turns a Fault of the backend into a JobError."""
        try:
            yield
        except Fault as fault:
            raise self._reason(fault, name) from None

    def _reason(self, fault: Fault, name: str) -> JobError:
        what = f"{self.field}: {self.uri.rstrip('/')}/{name}" if name else f"{self.field}: {self.uri}"
        match fault.kind:
            case "BucketMissing":
                return bad_input(Reason.BUCKET_MISSING, f"{what}: the bucket does not exist; correct the URI")
            case "KeyUnknown":
                return denied(
                    Reason.ACCESS_DENIED,
                    f"{what}: the store does not know the access key; check the Secret's keys",
                )
            case "ObjectMissing":
                return bad_input(
                    Reason.OBJECT_MISSING, f"{what} does not exist; correct the URI or upload the file"
                )
            case "Refused" if self._anonymous:
                return denied(
                    Reason.CREDENTIALS_MISSING,
                    f"{what}: the store requires credentials and spec names none; set credentials:"
                    " {secretRef: {name: ...}}",
                )
            case "Refused":
                return denied(
                    Reason.ACCESS_DENIED,
                    f"{what}: the store refused the credentials; check the Secret's keys and the right to"
                    " read (some stores also answer so for a missing object)",
                )
            case "Expired":
                return denied(
                    Reason.CREDENTIALS_EXPIRED,
                    f"{what}: the store says that the credentials have expired; renew them in the Secret",
                )
            case "Changed":
                return retryable(
                    Reason.OBJECT_REPLACED,
                    f"{what}: the object was replaced or removed while it was read; it will be tried again;"
                    " publish each version under a URI of its own",
                )
            case "NotResolved":
                return retryable(
                    Reason.STORE_NOT_RESOLVED,
                    f"{what}: the store's host name does not resolve; check the URI, the store's endpoint and"
                    " the cluster's DNS",
                )
            case "WrongRegion":
                return bad_input(
                    Reason.WRONG_REGION,
                    f"{what}: the bucket lies in another region; set the store's region in the operator's"
                    " configuration",
                )
            case "Redirected":
                return bad_input(
                    Reason.REDIRECT_REFUSED,
                    f"{what}: the store {fault.detail}; {self._scheme.redirect_remedy}",
                )
            case "NotListable":
                listing = " or ".join(f"{name}://" for name, scheme in SCHEMES.items() if scheme.lists)
                return bad_input(
                    Reason.TASK_INVALID,
                    f"{self.field}: only a store that can be listed is cleaned up; its URI must begin with"
                    f" {listing}",
                )
            case "Unfit":
                return bad_input(Reason.URI_INVALID, f"{what} {fault.detail}")
            case "TooLarge":
                return bad_input(Reason.TOO_LARGE, f"{what} {fault.detail}")
            case "Digest":
                return bad_input(
                    Reason.DIGEST_MISMATCH,
                    f"{what} {fault.detail}; the store does not send what the URI names: push it again",
                )
            case "ReadOnly":
                return bad_input(
                    Reason.TASK_INVALID,
                    f"{what}: a store of this kind is only read; artifacts must lie in another one",
                )
            case "Status" if fault.status // 100 == 4 and fault.status not in (408, 425, 429):
                return bad_input(
                    Reason.STORE_REFUSED,
                    f"{what}: the store refused the request with status {fault.status}; check the URI and the"
                    " store's configuration",
                )
            case "Status":
                return retryable(
                    Reason.STORE_UNAVAILABLE,
                    f"{what}: the store answered with status {fault.status}; it will be tried again",
                )
            case "Certificate":
                return bad_input(
                    Reason.CERTIFICATE_REFUSED,
                    f"{what}: the store's TLS certificate is not trusted; use one that the image's CA bundle"
                    " knows",
                )
        return retryable(
            Reason.STORE_UNREACHABLE,
            f"{what}: the store does not answer or broke the connection; check the endpoint and network"
            " policies",
        )

    def chunks(self, max_bytes: int, advance: Advance | None = None, name: str = "") -> Iterator[bytes]:
        """The object's bytes; at most ``max_bytes``, else TooLarge."""
        with self._reasons(name):
            total, content = self._backend.get(self._path(name))
            yield from self._bounded(total, content, max_bytes, advance)

    def _bounded(
        self, total: int, content: Generator[bytes, None, None], max_bytes: int, advance: Advance | None
    ) -> Iterator[bytes]:
        too_large = bad_input(
            Reason.TOO_LARGE, f"{self.field}: {self.uri} is larger than the limit of {max_bytes} bytes"
        )
        with closing(content):
            if total > max_bytes:
                raise too_large
            done = 0
            for chunk in content:
                done += len(chunk)
                if done > max_bytes:  # the announced size may be a lie
                    raise too_large
                if advance:
                    advance(done, total)
                yield chunk

    def download(
        self, target: Path, *, max_bytes: int, advance: Advance | None = None, name: str = ""
    ) -> Fetched:
        """Write the object to ``target``; at most ``max_bytes``, else TooLarge."""
        digest, size = hashlib.sha256(), 0
        with target.open("wb") as file:
            for chunk in self.chunks(max_bytes, advance, name):
                digest.update(chunk)
                file.write(chunk)
                size += len(chunk)
        return Fetched(digest.hexdigest(), size)

    def digest(self, *, max_bytes: int, advance: Advance | None = None) -> Fetched:
        """Read the whole object and keep nothing."""
        return _digest(self.chunks(max_bytes, advance))

    def newer(
        self, etag: str | None, *, max_bytes: int, advance: Advance | None = None
    ) -> tuple[Fetched, str | None] | None:
        """The digest of the object and its strong ETag; None if it still has ``etag``."""
        with self._reasons():
            found = self._backend.newer(self._path(""), etag)
            if found is None:
                return None
            return _digest(self._bounded(found.size, found.content, max_bytes, advance)), found.etag

    def read(self, name: str, *, max_bytes: int) -> bytes | None:
        """A small object below this place; None when there is none."""
        try:
            return b"".join(self.chunks(max_bytes, None, name))
        except JobError as error:
            if error.reason == Reason.OBJECT_MISSING:
                return None
            raise

    def size(self, name: str) -> int | None:
        """Bytes of an object below this place; None when there is none."""
        try:
            with self._reasons(name):
                return self._backend.size(self._path(name))
        except JobError as error:
            if error.reason == Reason.OBJECT_MISSING:
                return None
            raise

    def write(
        self, name: str, content: bytes | Path, mode: Literal["create", "overwrite"] = "overwrite"
    ) -> bool:
        """Put an object below this place; False when ``mode`` is create and it existed already.

        A store that cannot create conditionally is written unconditionally.
        """
        with self._reasons(name):
            return self._backend.put(self._path(name), content, create=mode == "create")

    def list(self) -> Iterator[Listed]:
        """Everything below this place, where the store can list."""
        with self._reasons():
            yield from self._backend.list(self._path(""))

    def delete(self, name: str) -> None:
        """Remove an object below this place, where the store can list; it may be gone already."""
        try:
            with self._reasons(name):
                self._backend.delete(self._path(name))
        except JobError as error:
            if error.reason != Reason.OBJECT_MISSING:
                raise


def _digest(chunks: Iterator[bytes]) -> Fetched:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return Fetched(digest.hexdigest(), size)


def expect_digest(fetched: Fetched, expected: str, field: str, uri: str) -> None:
    """Raise DigestMismatch unless the bytes are the ones that were pinned; ``field`` holds ``uri``
    and ``sha256``.
    """
    if fetched.sha256 != expected.removeprefix("sha256:"):
        raise JobError(
            ExitCode.BAD_INPUT,
            Reason.DIGEST_MISMATCH,
            f"{field}.uri: {uri} has sha256 {fetched.sha256}, not {expected.removeprefix('sha256:')}; the"
            f" file was replaced after it was pinned: correct {field}.sha256, or publish each version"
            " under a URI of its own",
        )
