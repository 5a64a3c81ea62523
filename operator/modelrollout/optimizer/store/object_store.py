"""Objects in S3 and behind HTTP: streamed, hashed, limited in size, and every failure told apart.

What is read comes through a client of ours, for S3 to addresses that obstore signs: obstore follows
every redirect, takes what it finds there for the object, and sends a session's token along. It
writes, lists and deletes in S3. Its own texts are never passed on: they are pages long, and a
store's error body may echo what was sent to it. What they are searched for is stable in
object_store 0.14 and held by tests against a real HTTP server.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from modelrollout.api import uris
from modelrollout.contract.common import CREDENTIALS_DIR, Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError, bad_input, denied, retryable
from modelrollout.optimizer.store.http_client import Client, Fault, fault_of
from modelrollout.telemetry.redaction import hide

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# About 15 s of tries for a store that is away; the Job's own retries come on top. Tests set fewer.
RETRY: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
# obstore's own limit of 30 s is for a whole request, body included: too short for gigabytes. A dead
# connection is seen by read_timeout.
_TIMEOUTS: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "6h"}
_SIGNED_FOR = timedelta(minutes=15)  # until a request begins, on clocks that need not agree

Advance = Callable[[int, int | None], None]  # bytes so far, bytes in all


@dataclass(frozen=True)
class Fetched:
    """What was read: hexadecimal SHA-256 and bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Listed:
    """An object below a place: its name there, bytes, and when it was last written, by the store's
    clock.
    """

    name: str
    size: int
    modified: datetime


def _secret(folder: Path, key: str) -> str | None:
    """One key of a mounted Secret; surrounding white space is a file's last newline, never part of
    a key.
    """
    path = folder / key
    return path.read_text().strip() or None if path.is_file() else None


def _s3_credentials(folder: Path, field: str) -> dict[str, str]:
    access, secret, token = (
        _secret(folder, f"AWS_{key}") for key in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    )
    if not access or not secret:
        missing = " and ".join(
            key
            for key, value in (("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret))
            if not value
        )
        raise denied(
            "CredentialsIncomplete",
            f"{field}: the Secret {folder.name!r} has no {missing}; S3 needs both keys",
        )
    found = {"access_key_id": access, "secret_access_key": hide(secret)}
    return found | {"session_token": hide(token)} if token else found


def _http_headers(folder: Path, field: str) -> dict[str, str]:
    token, user, password = (_secret(folder, key) for key in ("token", "username", "password"))
    if token:
        return {"authorization": f"Bearer {hide(token)}"}
    if user and password:
        return {
            "authorization": f"Basic {hide(base64.b64encode(f'{user}:{hide(password)}'.encode()).decode())}"
        }
    raise denied(
        "CredentialsIncomplete",
        f"{field}: the Secret {folder.name!r} has neither token nor username and password; HTTP needs one of"
        " them",
    )


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
            "CredentialsMissing",
            f"{field}: the Secret with its credentials is empty or not there; create it in this namespace, or"
            " correct secretRef.name",
        )
    return folder


# Signs what nobody reads: only the address is taken, so that it is written as obstore writes it.
_NO_KEYS = {"access_key_id": "none", "secret_access_key": "none"}


def _s3(bucket: str, location: Location, keys: Mapping[str, Any]) -> S3Store:
    return S3Store(
        bucket,
        endpoint=location.endpoint,
        region=location.region or "us-east-1",
        virtual_hosted_style_request=location.endpoint is None,
        client_options={**_TIMEOUTS, "allow_http": location.allow_http},
        retry_config=RETRY,
        **keys,
    )


def _signed(store: S3Store) -> Callable[[str, str], str]:
    """Addresses of objects that open them for a while."""
    return lambda method, path: str(obstore.sign(store, cast(Any, method), path, _SIGNED_FOR))


def _unsigned(store: S3Store) -> Callable[[str, str], str]:
    signed = _signed(store)
    return lambda method, path: signed(method, path).partition("?")[0]


def _fault(error: BaseError | FileNotFoundError) -> Fault:
    """obstore's error as ours, by what its text says."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return fault_of(404, text)
    # so DeleteObjects says it, with a 200
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
            raise bad_input("UriInvalid", f"{field}: {uris.INSTEAD}")
        try:
            parts = urlsplit(location.uri)
            _ = parts.port
        except ValueError:  # whose text may hold all of it
            raise bad_input(
                "UriInvalid", f"{field}: not a URI; write s3://BUCKET/KEY or http(s)://HOST/PATH"
            ) from None
        if parts.scheme not in ("s3", "http", "https"):
            raise bad_input(
                "UnsupportedScheme",
                f"{field}: {parts.scheme or 'no scheme'!r} is not supported; write s3://BUCKET/KEY or"
                " http(s)://HOST/PATH",
            )
        self._prefix = parts.path.strip("/")
        names = self._prefix if parts.scheme == "s3" else unquote(self._prefix)
        whole = bucket and not names
        if not parts.netloc or not (names or whole):
            raise bad_input(
                "UriInvalid",
                f"{field}: {location.uri!r} names no object; write s3://BUCKET/KEY or http(s)://HOST/PATH",
            )
        if not whole and any(part in ("", ".", "..") for part in names.split("/")):
            raise bad_input(
                "UriInvalid",
                f"{field}: {location.uri!r} has an empty, '.' or '..' segment in its path; write the key"
                " without them",
            )
        address = (location.endpoint or "https://s3") if parts.scheme == "s3" else location.uri
        if address.startswith("http://") and not location.allow_http:
            raise bad_input(
                "InsecureStore",
                f"{field}: plain http is not allowed for this store; use https, or set allowHttp for it in"
                " the operator's configuration",
            )
        folder = _credentials_folder(location, credentials_root, field)
        self._s3: S3Store | None = None
        if parts.scheme == "s3":
            keys = _s3_credentials(folder, field) if folder else None
            # Without keys obstore would ask the cloud's metadata service: anonymous has to be said.
            self._s3 = _s3(parts.netloc, location, keys or {"skip_signature": True})
            self._client = Client(
                _signed(self._s3) if keys else _unsigned(_s3(parts.netloc, location, _NO_KEYS)), RETRY
            )
        else:
            base = f"{parts.scheme}://{parts.netloc}"
            headers = _http_headers(folder, field) if folder else {}
            self._client = Client(
                lambda _, path: f"{base}/{path}", RETRY, headers, location.leads_to or (), location.allow_http
            )

    def _path(self, name: str) -> str:
        """As the client takes it: of HTTP percent-encoded, as in the URI."""
        return "/".join(part for part in (self._prefix, name if self._s3 else quote(name)) if part)

    @contextmanager
    def _told_apart(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            raise self._told(_fault(error), name) from None
        except Fault as fault:
            raise self._told(fault, name) from None

    def _told(self, fault: Fault, name: str) -> JobError:
        """A store's fault as a reason."""
        what = f"{self.field}: {self.uri.rstrip('/')}/{name}" if name else f"{self.field}: {self.uri}"
        match fault.kind:
            case "BucketMissing":
                return bad_input("BucketMissing", f"{what}: the bucket does not exist; correct the URI")
            case "KeyUnknown":
                return denied(
                    "AccessDenied", f"{what}: the store does not know the access key; check the Secret's keys"
                )
            case "ObjectMissing":
                return bad_input(
                    "ObjectMissing", f"{what} does not exist; correct the URI or upload the file"
                )
            case "Refused" if self._anonymous:
                return denied(
                    "CredentialsMissing",
                    f"{what}: the store wants credentials and none were given; set credentials: {{secretRef:"
                    " {name: ...}}",
                )
            case "Refused":
                return denied(
                    "AccessDenied",
                    f"{what}: the store refused the credentials; check the Secret's keys and the right to"
                    " read (S3 also answers so for a missing object)",
                )
            case "NotResolved":
                return retryable(
                    "StoreNotResolved",
                    f"{what}: the store's host name does not resolve; check the URI, the store's endpoint and"
                    " the cluster's DNS",
                )
            case "WrongRegion":
                return bad_input(
                    "WrongRegion",
                    f"{what}: the bucket lies in another region; set the store's region in the operator's"
                    " configuration",
                )
            case "Redirected":
                remedy = (
                    "correct the store's endpoint and region: redirects of S3 are not followed"
                    if self._s3
                    else "copy the file, or have the platform team name its place in the store's redirectsTo"
                )
                return bad_input("RedirectRefused", f"{what}: the store {fault.detail}; {remedy}")
            case "Status" if fault.status // 100 == 4 and fault.status not in (408, 425, 429):
                return bad_input(
                    "StoreRefused",
                    f"{what}: the store refused the request with status {fault.status}; check the URI and the"
                    " store's configuration",
                )
            case "Status":
                return retryable(
                    "StoreUnavailable",
                    f"{what}: the store answered with status {fault.status}; it will be tried again",
                )
            case "Certificate":
                return bad_input(
                    "CertificateRefused",
                    f"{what}: the store's TLS certificate is not trusted; use one that the image's CA bundle"
                    " knows",
                )
        return retryable(
            "StoreUnreachable",
            f"{what}: the store does not answer or broke the connection; check the endpoint and network"
            " policies",
        )

    def chunks(self, max_bytes: int, advance: Advance | None = None, name: str = "") -> Iterator[bytes]:
        """The object's bytes; at most ``max_bytes``, else TooLarge."""
        too_large = bad_input(
            "TooLarge", f"{self.field}: {self.uri} is larger than the limit of {max_bytes} bytes"
        )
        with self._told_apart(name):
            total, content = self._client.get(self._path(name))
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
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(max_bytes, advance):
            digest.update(chunk)
            size += len(chunk)
        return Fetched(digest.hexdigest(), size)

    def read(self, name: str, *, max_bytes: int) -> bytes | None:
        """A small object below this place; None when there is none."""
        try:
            return b"".join(self.chunks(max_bytes, None, name))
        except JobError as error:
            if error.reason == "ObjectMissing":
                return None
            raise

    def size(self, name: str) -> int | None:
        """Bytes of an object below this place; None when there is none."""
        try:
            with self._told_apart(name):
                return self._client.size(self._path(name))
        except JobError as error:
            if error.reason == "ObjectMissing":
                return None
            raise

    def write(
        self, name: str, content: bytes | Path, mode: Literal["create", "overwrite"] = "overwrite"
    ) -> bool:
        """Put an object below this place; False when ``mode`` is create and it was there already.

        A store that cannot create conditionally (status 501, or HTTP altogether) is written
        unconditionally.
        """
        with self._told_apart(name):
            if self._s3 is None:
                self._client.put(self._path(name), content)
                return True
            try:
                obstore.put(self._s3, self._path(name), content, mode=mode)
            except AlreadyExistsError:
                return False
            except BaseError as error:
                if mode == "overwrite" or "status code: 501" not in str(error):
                    raise
                obstore.put(self._s3, self._path(name), content)
        return True

    def _listed(self) -> S3Store:
        if self._s3 is None:
            raise bad_input(
                "TaskInvalid",
                f"{self.field}: only a store that can be listed is cleaned up; its URI must begin with s3://",
            )
        return self._s3

    def list(self) -> Iterator[Listed]:
        """Everything below this place, which is in S3."""
        with self._told_apart():
            for chunk in obstore.list(self._listed(), prefix=self._prefix or None):
                for found in chunk:
                    yield Listed(
                        found["path"].removeprefix(self._path("")).lstrip("/"),
                        found["size"],
                        found["last_modified"],
                    )

    def delete(self, name: str) -> None:
        """Remove an object below this place, which is in S3; that it is gone already is well."""
        try:
            with self._told_apart(name):
                obstore.delete(self._listed(), self._path(name))
        except JobError as error:
            if error.reason != "ObjectMissing":
                raise


def expect_digest(found: Fetched, wanted: str, field: str, uri: str) -> None:
    """Raise DigestMismatch unless the bytes are the ones that were pinned; ``field`` holds ``uri``
    and ``sha256``.
    """
    if found.sha256 != wanted.removeprefix("sha256:"):
        raise JobError(
            ExitCode.BAD_INPUT,
            "DigestMismatch",
            f"{field}.uri: {uri} has sha256 {found.sha256}, not {wanted.removeprefix('sha256:')}; the file"
            f" was replaced after it was pinned: correct {field}.sha256, or publish each version under a URI"
            " of its own",
        )
