"""HTTP as stores speak it: streamed, tried again, resumed, and led nowhere but where the operator's
configuration says.

A redirect is followed only by GET and HEAD, only to the prefixes that the store's configuration
names (its own among them), never from https to http. Credentials go to the store's own host only.
Another host's name must not resolve to this machine, to link-local addresses or to a cloud's
metadata service (``api.addresses``): the client resolves the name first, and connects to the
address that it has checked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import re
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, NameResolutionError, SSLError
from urllib3.response import BaseHTTPResponse

from modelrollout.api.addresses import near
from modelrollout.api.uris import origin

if TYPE_CHECKING:
    from obstore.store import RetryConfig

CHUNK_BYTES = 8 << 20
MOST_REDIRECTS = 5
TOTAL_SECONDS = 6 * 3600.0  # of one object; a dead connection is seen by the read timeout
_TIMEOUT = urllib3.Timeout(connect=5, read=30)
_ERROR_BYTES = 65536  # of a store's own words, in which codes are looked for
_REDIRECTS = (301, 302, 303, 307, 308)
_AGAIN = (408, 425, 429)  # and all of 5xx
# A strong ETag of bounded length: only that says that the bytes are the same.
_STRONG = re.compile(r'"[\x21\x23-\x7e]{1,254}"')

Kind = Literal[
    "BucketMissing",
    "KeyUnknown",
    "ObjectMissing",
    "Refused",
    "Expired",
    "Changed",
    "NotResolved",
    "WrongRegion",
    "Status",
    "Certificate",
    "Redirected",
    "Unreachable",
    "NotListable",
    "ReadOnly",
    "Unfit",
    "TooLarge",
    "Digest",
]


class Fault(Exception):
    """Why a request to a store failed. ``detail``, without secrets: of Redirected, where it leads
    and why it is not followed; of Unfit, TooLarge and Digest, what is wrong with what was read.
    """

    def __init__(self, kind: Kind, status: int = 0, detail: str = "") -> None:
        super().__init__(f"{kind} {status} {detail}".strip())
        self.kind, self.status, self.detail = kind, status, detail


# Codes of S3 stores for an unknown access key; some come with status 404.
_UNKNOWN_KEY = ("InvalidAccessKeyId", "XAdminUserNotFound")


# How stores say that a token is too old: S3 and Google; Azure of a SAS; OAuth and those like it.
_EXPIRED = re.compile(
    r"\bExpired(?:Token|OAuthToken)\b|\bTokenRefreshRequired\b|not valid in the specified time frame"
    r"|(?i:\btoken\b[^.<>]{0,80}\bexpired\b)"
)
# of S3 and Google; of Azure
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")


def is_expired(text: str) -> bool:
    """Whether a store's words say that what opens it was valid once."""
    return _EXPIRED.search(text) is not None


def fault_of(status: int, body: str) -> Fault:
    """The fault behind a status and what the answer says: its body, its challenge."""
    if status in (400, 401, 403) and is_expired(body):
        return Fault("Expired", status)
    if status == 404:
        if any(code in body for code in _NO_BUCKET):
            return Fault("BucketMissing", status)
        return Fault("KeyUnknown" if any(code in body for code in _UNKNOWN_KEY) else "ObjectMissing", status)
    # Azure refuses what is anonymous with 409 where the account allows nothing of the kind
    if status in (401, 403) or "PublicAccessNotPermitted" in body:
        return Fault("Refused", status)
    region = "AuthorizationHeaderMalformed" in body or (
        "AuthorizationQueryParametersError" in body and "region" in body
    )
    # one without a Location: so S3 says that the bucket is elsewhere
    if region or status in _REDIRECTS:
        return Fault("WrongRegion", status)
    return Fault("Status", status)


@dataclass(frozen=True)
class Newer:
    """An object that is to be read, with its strong ETag where the store gave one."""

    size: int
    etag: str | None
    content: Generator[bytes, None, None]


@dataclass(frozen=True)
class Client:
    """One store. ``address`` gives the URL for a method and a path; it is called for every try,
    because a signature expires.
    """

    address: Callable[[str, str], str]
    retry: RetryConfig
    headers: Mapping[str, str] = field(default_factory=dict)  # with what opens it
    leads_to: tuple[str, ...] = ()
    allow_http: bool = False
    # Gets what opens the store anew, into ``headers``, for the challenge of a refusal; whether it
    # did. Without it a refusal is final.
    renew: Callable[[str], bool] = lambda challenge: False
    _own: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
    )

    def size(self, path: str) -> int:
        """Bytes of an object; raises Fault."""
        with self._answer("HEAD", path) as answer:
            return _length(answer)

    def get(self, path: str) -> tuple[int, Generator[bytes, None, None]]:
        """Size and content of an object. A broken download resumes where it stopped, if the object
        has an ETag that shows that it is still the same.

        Raises Fault, also while it is read.
        """
        return self._opened(path, self._request("GET", path))

    def newer(self, path: str, etag: str | None) -> Newer | None:
        """The object, unless it still has that ETag: one request, and no download then. Raises
        Fault, also while it is read.
        """
        if etag is not None and not _STRONG.fullmatch(etag):  # from a status that was edited
            etag = None
        try:
            answer = self._request("GET", path, {"If-None-Match": etag} if etag else None)
        except Fault as fault:
            if etag and fault.status == 304:
                return None
            raise
        mark = answer.headers.get("ETag", "")
        now = mark if _STRONG.fullmatch(mark) else None
        if etag is not None and now == etag:  # the store does not know If-None-Match
            answer.close()
            return None
        size, content = self._opened(path, answer)
        return Newer(size, now, content)

    def _opened(self, path: str, answer: BaseHTTPResponse) -> tuple[int, Generator[bytes, None, None]]:
        try:
            size = _length(answer)
        except Fault:
            answer.close()
            raise
        return size, self._content(path, answer, size)

    def ask(self, own: str, url: str, headers: Mapping[str, str]) -> bytes:
        """A small document to which the store at ``own`` refers: on its own host, or where it may
        redirect to. Raises Fault.
        """
        parts = urlsplit(own)
        target = self._redirect_target(
            "GET", own, url, "sends for a token", (f"{parts.scheme}://{parts.netloc}/",)
        )
        away = origin(target) != origin(own)
        with contextlib.closing(self._send("GET", target, headers, None, away)) as answer:
            content = answer.read(_ERROR_BYTES)
            if answer.status != 200:
                raise fault_of(answer.status, content.decode("latin-1"))
            return content

    def put(self, path: str, content: bytes | Path) -> None:
        """Write an object; folders that WebDAV wants are made. Raises Fault."""
        try:
            self._write(path, content)
        except Fault as fault:
            if fault.status not in (404, 409):
                raise
            parents = path.split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                with contextlib.suppress(Fault), self._answer("MKCOL", "/".join(parents[:depth]) + "/"):
                    pass
            self._write(path, content)

    def _write(self, path: str, content: bytes | Path) -> None:
        if isinstance(content, bytes):
            with self._answer("PUT", path, {"Content-Length": str(len(content))}, content):
                return
        with (
            content.open("rb") as file,
            self._answer("PUT", path, {"Content-Length": str(content.stat().st_size)}, file),
        ):
            pass

    def _content(self, path: str, answer: BaseHTTPResponse, size: int) -> Generator[bytes, None, None]:
        mark, done, until = answer.headers.get("ETag", ""), 0, time.monotonic() + TOTAL_SECONDS
        pauses = self._pauses()
        while True:
            try:
                with contextlib.closing(answer):
                    # what is there: of a trickle nothing else would ever be seen
                    while chunk := answer.read1(CHUNK_BYTES):
                        done += len(chunk)
                        yield chunk
                        if time.monotonic() > until:
                            raise Fault("Unreachable")
                if done >= size:
                    return
            except HTTPError:
                pass
            pause = next(pauses, None)
            if pause is None or not mark or mark.startswith("W/"):
                raise Fault("Unreachable")
            time.sleep(pause)
            try:
                answer = self._request("GET", path, {"Range": f"bytes={done}-", "If-Match": mark})
            except Fault as fault:
                changed = fault.status in (412, 416) or fault.kind == "ObjectMissing"
                raise Fault("Changed") if changed else fault from None
            if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(
                f"bytes {done}-"
            ):
                other = answer.headers.get("ETag", mark) != mark
                answer.close()
                # it does not go on where it was: another object by now, or no ranges
                raise Fault("Changed" if other else "Unreachable")

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> Iterator[BaseHTTPResponse]:
        with contextlib.closing(self._request(method, path, headers, body)) as answer:
            yield answer
            with contextlib.suppress(HTTPError):
                # whose connection was read to the end of the answer is used again
                answer.read(_ERROR_BYTES)

    def _pauses(self) -> Iterator[float]:
        """Seconds before each further try."""
        backoff = self.retry.get("backoff")
        for number in range(self.retry.get("max_retries", 0)):
            pause = (
                backoff["init_backoff"].total_seconds() * float(backoff["base"]) ** number if backoff else 1.0
            )
            yield random.uniform(0.5, 1.0) * (
                min(pause, backoff["max_backoff"].total_seconds()) if backoff else pause
            )

    def _request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None
    ) -> BaseHTTPResponse:
        """An answer of 2xx, after as many tries as it takes; raises Fault."""
        pauses = self._pauses()
        while True:
            if hasattr(body, "seek"):
                body.seek(0)
            try:
                answer = self._follow_redirects(method, self.address(method, path), headers or {}, body)
                if 200 <= answer.status < 300:
                    return answer
                content = b""
                with contextlib.closing(answer), contextlib.suppress(HTTPError):
                    content = answer.read(_ERROR_BYTES)
                fault = fault_of(
                    answer.status, answer.headers.get("WWW-Authenticate", "") + content.decode("latin-1")
                )
            except HTTPError as error:
                fault = _unanswered(error)
            pause = (
                next(pauses, None)
                if fault.kind in ("Unreachable", "NotResolved")
                or fault.status >= 500
                or fault.status in _AGAIN
                else None
            )
            if pause is None:
                raise fault
            time.sleep(pause)

    def _follow_redirects(
        self, method: str, url: str, headers: Mapping[str, str], body: Any
    ) -> BaseHTTPResponse:
        """The answer at the end of all redirects; raises Fault and what urllib3 raises."""
        own = origin(url)
        away = renewed = False
        for _ in range(MOST_REDIRECTS + 1):
            answer = self._send(method, url, headers if away else {**headers, **self.headers}, body, away)
            if answer.status == 401 and not away and not renewed:
                try:
                    renewed = self.renew(answer.headers.get("WWW-Authenticate", ""))
                except (Fault, HTTPError):
                    answer.close()
                    raise
                if renewed:
                    answer.close()
                    answer = self._send(method, url, {**headers, **self.headers}, body, away)
            location = answer.headers.get("Location")
            if answer.status not in _REDIRECTS or location is None:
                return answer
            answer.close()
            url = self._redirect_target(method, url, location)
            # who has once been elsewhere is sent nothing that opens the store, though it leads back
            away = away or origin(url) != own
        raise Fault(
            "Redirected", detail=f"leads on and on: after {MOST_REDIRECTS} redirects, to {_shown(url)}"
        )

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: Any, away: bool
    ) -> BaseHTTPResponse:
        sent = {"User-Agent": "modelrollout", "Accept-Encoding": "identity", **headers}
        options: dict[str, Any] = {
            "body": body,
            "redirect": False,
            "preload_content": False,
            "decode_content": False,
        }
        scheme, host, port = origin(url)
        if not away or _literal(host):
            return self._own.request(method, url, headers=sent, **options)
        address = _resolve(host, port)
        pool: urllib3.HTTPConnectionPool
        if scheme == "https":
            pool = urllib3.HTTPSConnectionPool(
                address, port, timeout=_TIMEOUT, retries=False, server_hostname=host
            )
        else:
            pool = urllib3.HTTPConnectionPool(address, port, timeout=_TIMEOUT, retries=False)
        parts = urlsplit(url)
        return pool.urlopen(
            method,
            parts._replace(scheme="", netloc="").geturl() or "/",
            headers={**sent, "Host": parts.netloc},
            **options,
        )

    def _redirect_target(
        self,
        method: str,
        url: str,
        location: str,
        does: str = "redirects",
        also: tuple[str, ...] = (),
    ) -> str:
        """Where a redirect leads; raises Fault where it may not. ``also``: further prefixes."""
        if method not in ("GET", "HEAD"):
            raise Fault("Redirected", detail="redirects what is written")
        try:
            target = urldefrag(urljoin(url, location)).url
            scheme, _, _ = origin(target)
            parts = urlsplit(target)
        except ValueError:
            raise Fault("Redirected", detail=f"{does} to an address that cannot be read") from None
        if (
            re.search(r"[\x00-\x20\x7f\\]", location)
            or "@" in parts.netloc
            or any(part in (".", "..") for part in unquote(parts.path).split("/"))
        ):
            raise Fault(
                "Redirected",
                detail=(
                    f"{does} to an address with a user name, dots for folders, or letters that do not"
                    " belong there"
                ),
            )
        if scheme == "http" and (url.startswith("https:") or not self.allow_http):
            raise Fault("Redirected", detail=f"{does} to plain http, {_shown(target)}")
        if not any(_below(target, prefix) for prefix in (*self.leads_to, *also)):
            raise Fault(
                "Redirected",
                detail=f"{does} to {_shown(target)}, which the store's configuration does not name",
            )
        return target


def _below(url: str, prefix: str) -> bool:
    """Whether the URL lies in the prefix, however either is written."""
    path, start = unquote(urlsplit(url).path), unquote(urlsplit(prefix).path).rstrip("/") + "/"
    return origin(url) == origin(prefix) and path.startswith(start)


def _shown(url: str) -> str:
    """Scheme, host and port: paths and queries of redirects are signed, and may be secret."""
    scheme, host, port = origin(url)
    inside = f"[{host}]" if ":" in host else host
    return f"{scheme}://{inside}" + ("" if port == (443 if scheme == "https" else 80) else f":{port}")


def _literal(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _resolve(host: str, port: int) -> str:
    """An address of the name; raises Fault if one of them is near."""
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise Fault("NotResolved") from None
    for address in addresses:
        if near(address):
            raise Fault(
                "Redirected",
                detail=(
                    f"redirects to {host}, whose address {address} belongs to a node or a metadata service"
                ),
            )
    return random.choice(addresses)


def _length(answer: BaseHTTPResponse) -> int:
    """The announced size; an answer that ends when the connection does might be half of it, and so
    might one of a part.
    """
    length = answer.headers.get("Content-Length", "")
    if (
        not re.fullmatch(r"[0-9]{1,18}", length)
        or answer.headers.get("Transfer-Encoding")
        or answer.status == 206
    ):
        raise Fault("Unreachable")
    return int(length)


def _unanswered(error: HTTPError) -> Fault:
    if isinstance(error, NameResolutionError):
        return Fault("NotResolved")
    if isinstance(error, SSLError) and "certificate" in str(error).lower():
        return Fault("Certificate")
    return Fault("Unreachable")
