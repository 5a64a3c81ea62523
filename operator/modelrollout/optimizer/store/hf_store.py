"""Models of the Hugging Face Hub, at one commit. The Hub redirects to content hosts, which the
store's configuration names; on its own host only to the same repository: the name of one that was
renamed may belong to another owner by now.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import SplitResult, quote

from modelrollout.api.uris import STORE_KINDS
from modelrollout.contract.common import Location
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.backend import ReadOnly, Scheme, incomplete, read_secret
from modelrollout.optimizer.store.http_client import Client
from modelrollout.reasons import Reason
from modelrollout.telemetry.redaction import hide

_KIND = STORE_KINDS["hf"]


def _endpoint(location: Location) -> str:
    return (location.endpoint or "https://huggingface.co").rstrip("/")


def _token(folder: Path, field: str) -> str:
    token = read_secret(folder, "token", field)
    if not token:
        raise incomplete(field, folder, f"has no token; {_KIND.name} needs one")
    return hide(token)


def _open(location: Location, uri: SplitResult, secret: Path | None, field: str) -> ReadOnly:
    if not re.search(_KIND.pattern, location.uri):
        raise bad_input(
            Reason.URI_INVALID,
            f"{field}: {location.uri} is not pinned by a commit; write {_KIND.form}, with all 40 digits",
        )
    base = _endpoint(location)
    name, _, commit = uri.path.strip("/").partition("/")[0].partition("@")
    files = f"{base}/{uri.netloc}/{name}/resolve/{commit}/"
    # where the Hub keeps what is small
    cached = f"{base}/api/resolve-cache/models/{uri.netloc}/{name}/{commit}/"

    def address(_: str, path: str) -> str:
        return files + quote(path.partition("/")[2])

    return ReadOnly(
        Client(
            address,
            backend.RETRY,
            {"authorization": f"Bearer {_token(secret, field)}"} if secret else {},
            (files, cached, *(location.leads_to or ())),
            location.allow_http,
        )
    )


HF = Scheme(
    open=_open,
    address=_endpoint,
    decode=str,
    encode=str,
    lists=False,
    redirect_remedy=(
        "have the platform team name its content hosts in the store's redirectsTo, or copy the file"
    ),
)
