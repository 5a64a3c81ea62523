"""HTTP and HTTPS: files on a web server, written by PUT (WebDAV). They cannot be listed."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote

from modelrollout.contract.common import Location
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.backend import LINE, ReadOnly, Scheme, incomplete, read_secret
from modelrollout.optimizer.store.http_client import Client, Newer
from modelrollout.telemetry.redaction import hide


class _Http(ReadOnly):
    """A host; what it has is overwritten."""

    def newer(self, path: str, etag: str | None) -> Newer | None:
        return self._client.newer(path, etag)

    def put(self, path: str, content: bytes | Path, *, create: bool) -> bool:
        self._client.put(path, content)  # a web server cannot create conditionally
        return True


def _headers(folder: Path, field: str) -> dict[str, str]:
    token = read_secret(folder, "token", field)
    user, password = (read_secret(folder, key, field, LINE) for key in ("username", "password"))
    if token:
        return {"authorization": f"Bearer {hide(token)}"}
    if user and password:
        return {
            "authorization": f"Basic {hide(base64.b64encode(f'{user}:{hide(password)}'.encode()).decode())}"
        }
    raise incomplete(field, folder, "has neither token nor username and password; HTTP needs one of them")


def _open(location: Location, uri: SplitResult, secret: Path | None, field: str) -> _Http:
    base = f"{uri.scheme}://{uri.netloc}"
    headers = _headers(secret, field) if secret else {}
    return _Http(
        Client(
            lambda _, path: f"{base}/{path}",
            backend.RETRY,
            headers,
            location.leads_to or (),
            location.allow_http,
        )
    )


HTTP = Scheme(
    open=_open,
    address=lambda location: location.uri,
    decode=unquote,
    encode=quote,
    lists=False,
    redirect_remedy="copy the file, or have the platform team name its place in the store's redirectsTo",
)
