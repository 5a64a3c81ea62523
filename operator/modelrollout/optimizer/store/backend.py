"""What a kind of store has to do; ``schemes`` lists the kinds."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import SplitResult

from modelrollout.contract.common import Location
from modelrollout.jobs.errors import JobError, denied
from modelrollout.optimizer.store.http_client import Client, Fault, Newer
from modelrollout.reasons import Reason

if TYPE_CHECKING:
    from obstore.store import RetryConfig

# About 15 s of tries for a store that is away; the Job's own retries come on top. Tests set fewer.
RETRY: RetryConfig = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}


@dataclass(frozen=True)
class Listed:
    """An object below a place: its name there, bytes, and when it was last written, by the store's
    clock.
    """

    name: str
    size: int
    modified: datetime


class Backend(Protocol):
    """An open store. Paths are the URI's, with names added as ``Scheme.encode`` writes them. Every
    method raises Fault; an iterator does so while it is read, too.
    """

    def size(self, path: str) -> int:
        """Bytes of an object."""

    def get(self, path: str) -> tuple[int, Generator[bytes, None, None]]:
        """The announced size and the content of an object."""

    def newer(self, path: str, etag: str | None) -> Newer | None:
        """The object, unless it still has that ETag; Fault Unfit where a URI pins what it names."""

    def put(self, path: str, content: bytes | Path, *, create: bool) -> bool:
        """Write an object. False where ``create`` is set, the object exists already, and the store
        can tell; then nothing is written.
        """

    def list(self, path: str) -> Iterator[Listed]:
        """All objects below a folder, named relative to it; Fault NotListable where the store
        cannot list.
        """

    def delete(self, path: str) -> None:
        """Remove an object; Fault NotListable as for ``list``."""


class ReadOnly:
    """A store whose objects are read over HTTP, and that is neither written nor listed."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def size(self, path: str) -> int:
        return self._client.size(path)

    def get(self, path: str) -> tuple[int, Generator[bytes, None, None]]:
        return self._client.get(path)

    def newer(self, path: str, etag: str | None) -> Newer | None:
        raise Fault("Unfit", detail="names what never changes; leave spec.model.follow out")

    def put(self, path: str, content: bytes | Path, *, create: bool) -> bool:
        raise Fault("ReadOnly")

    def list(self, path: str) -> Iterator[Listed]:
        raise Fault("NotListable")

    def delete(self, path: str) -> None:
        raise Fault("NotListable")


@dataclass(frozen=True)
class Scheme:
    """How a kind of store is read and written; ``api.uris`` has what else is known of it.

    ``open(location, uri, secret, field)``: ``uri`` is that of the location, split; ``secret`` the
    folder of the mounted Secret, None for anonymous access; ``field`` what messages name. Raises
    JobError: CredentialsIncomplete.
    """

    open: Callable[[Location, SplitResult, Path | None, str], Backend]
    address: Callable[[Location], str]  # the URL that requests go to
    decode: Callable[[str], str]  # the path of a URI as the names that it consists of
    encode: Callable[[str], str]  # a name as the part of a path
    lists: bool  # whether it can list, and delete
    redirect_remedy: str  # what to do where the store redirects to a place that is not allowed


# What a header or a signed address takes as it is. Others fail in the libraries that send them,
# with words that repeat the value, or with a panic.
SENT = re.compile(r"[\x20-\x7e]*")
LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f]*")  # of what is encoded before it is sent
DOCUMENT = re.compile(r"(?s:.*)")  # of which parts are used


def read_secret(folder: Path, key: str, field: str, form: re.Pattern[str] = SENT) -> str | None:
    """One key of a mounted Secret. White space around it is a file's last newline, never part of a
    key. Raises JobError (CredentialsIncomplete) where it has another form.
    """
    path = folder / key
    if not path.is_file():
        return None
    try:
        value = path.read_bytes().decode().strip()
    except UnicodeDecodeError:
        raise incomplete(field, folder, f"has a {key} that is not UTF-8; write it as text") from None
    if not form.fullmatch(value):
        raise incomplete(
            field,
            folder,
            f"has a {key} with a line break or another character that cannot be sent; write it on one line,"
            " without quotes or anything else around it",
        )
    return value or None


def incomplete(field: str, folder: Path, what: str) -> JobError:
    """That the mounted Secret does not open this kind of store; ``what`` it lacks, and what is
    needed.
    """
    return denied(Reason.CREDENTIALS_INCOMPLETE, f"{field}: the Secret {folder.name!r} {what}")
