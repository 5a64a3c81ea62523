"""Models in registries: OCI artifacts, ModelKits, ModelPacks and images, pinned by the digest of
their manifest. Every byte is checked: the manifest against the URI, the layers against it.

A registry may send for a token to another host, and redirects layers to its content hosts: both
only where the store's configuration names the place.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Generator
from pathlib import Path
from urllib.parse import SplitResult, urlencode

from modelrollout import nesting
from modelrollout.api.uris import STORE_KINDS
from modelrollout.contract.common import Location
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.store import backend, oci_layers
from modelrollout.optimizer.store.backend import LINE, SENT, ReadOnly, Scheme, incomplete, read_secret
from modelrollout.optimizer.store.http_client import Client, Fault
from modelrollout.reasons import Reason
from modelrollout.telemetry.redaction import hide

_KIND = STORE_KINDS["oci"]
_PATH = re.compile(r"^(?P<repository>[^@]+)@sha256:(?P<digest>[0-9a-f]{64})(/(?P<file>.+))?$")
_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "*/*",
    )
)
_MANIFEST_LIMIT_BYTES = 4 << 20
_CHALLENGE_LIMIT = 4096  # characters; a real one has some 200


def _endpoint(location: Location) -> str:
    return (location.endpoint or f"https://{location.uri.split('/')[2]}").rstrip("/")


class _Registry(ReadOnly):
    def size(self, path: str) -> int:
        size, content = self.get(path)
        content.close()
        return size

    def get(self, path: str) -> tuple[int, Generator[bytes, None, None]]:
        parts = _PATH.fullmatch(path)
        if parts is None:
            raise Fault("Unfit", detail=f"has no digest; write {_KIND.form}")
        repository, file = parts["repository"], parts["file"] or ""
        layers = oci_layers.layers_of(self._manifest(f"{repository}/manifests/sha256:{parts['digest']}"))
        blobs = f"{repository}/blobs/sha256:"
        if layer := oci_layers.as_it_is(layers, file):
            size, content = self._client.get(blobs + layer.digest)
            return size, _checked(content, layer.digest)
        for layer in oci_layers.archives(layers):
            _, content = self._client.get(blobs + layer.digest)
            if found := oci_layers.find(layer, _checked(content, layer.digest), file):
                return found
        raise Fault("ObjectMissing")

    def _manifest(self, path: str) -> bytes:
        size, content = self._client.get(path)
        if size > _MANIFEST_LIMIT_BYTES:
            content.close()
            raise Fault("Unfit", detail=f"has a manifest of {size} bytes; push a smaller one")
        return b"".join(_checked(content, path.rpartition(":")[2]))


def _checked(content: Generator[bytes, None, None], expected: str) -> Generator[bytes, None, None]:
    """The bytes; Fault Digest at their end if they are others."""
    digest = hashlib.sha256()
    try:
        for chunk in content:
            digest.update(chunk)
            yield chunk
    finally:
        content.close()
    if digest.hexdigest() != expected:
        raise Fault("Digest", detail=f"has sha256 {digest.hexdigest()}, not {expected}")


def _credentials(folder: Path, field: str) -> str:
    """As HTTP's Basic writes them."""
    user, password = (read_secret(folder, key, field, LINE) for key in ("username", "password"))
    if not user or not password:
        raise incomplete(field, folder, f"has no username and password; {_KIND.name} needs both")
    return hide(base64.b64encode(f"{user}:{hide(password)}".encode()).decode())


def _parameters(challenge: str) -> dict[str, str]:
    """Those of a challenge for a token; none where it is another one."""
    kind, _, rest = challenge[:_CHALLENGE_LIMIT].partition(" ")
    # from the start of a word, or the search would be quadratic
    return dict(re.findall(r'\b(\w+)="([^"]*)"', rest)) if kind.lower() == "bearer" else {}


def _open(location: Location, uri: SplitResult, secret: Path | None, field: str) -> _Registry:
    if not re.search(_KIND.pattern, location.uri):
        raise bad_input(
            Reason.URI_INVALID,
            f"{field}: {location.uri} is not pinned by a digest; write {_KIND.form}, with all 64 digits",
        )
    base = f"{_endpoint(location)}/v2/"
    basic = _credentials(secret, field) if secret else None
    repository = uri.path.strip("/").partition("@")[0]
    headers = {"accept": _MANIFESTS}
    if basic:
        headers["authorization"] = f"Basic {basic}"

    def renew(challenge: str) -> bool:
        """Get the token that the registry sends for."""
        wanted = _parameters(challenge)
        if "realm" not in wanted:
            return False
        query = urlencode({"service": wanted.get("service", ""), "scope": f"repository:{repository}:pull"})
        place = f"{wanted['realm']}{'&' if '?' in wanted['realm'] else '?'}{query}"
        answer = client.ask(base, place, {"authorization": f"Basic {basic}"} if basic else {})
        try:
            content = nesting.parse(answer)
            token = content.get("token") or content["access_token"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if not isinstance(token, str) or not SENT.fullmatch(token):
            return False
        headers["authorization"] = f"Bearer {hide(token)}"
        return True

    client = Client(
        lambda _, path: base + path,
        backend.RETRY,
        headers,
        (f"{base}{repository}/blobs/", *(location.leads_to or ())),
        location.allow_http,
        renew,
    )
    return _Registry(client)


OCI = Scheme(
    open=_open,
    address=_endpoint,
    decode=str,
    encode=str,
    lists=False,
    redirect_remedy=(
        "have the platform team name its content hosts, and who gives its tokens, in the store's redirectsTo"
    ),
)
