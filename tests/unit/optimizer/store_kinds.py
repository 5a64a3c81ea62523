"""Every scheme as the stand-in speaks it: the same test reads, writes and fails in each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from modelrollout.contract.common import Location
from modelrollout.testing.object_store import ObjectStore

FIELD = "spec.model.uri"
SECRET = "mine"
CONTENT = bytes(range(256)) * 64
COMMIT = "0123456789abcdef" * 2 + "01234567"


@cache
def private_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Of that service account."""
    return rsa.generate_private_key(65537, bits)


def pem(key: rsa.RSAPrivateKey) -> str:
    """The key as text."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def account(**more: str) -> str:
    """The JSON key of a service account of Google."""
    return json.dumps(
        {"client_email": "m@p.example", "private_key": pem(private_key()), "private_key_id": "k-1", **more}
    )


@dataclass(frozen=True)
class Kind:
    """``location(server, name, credentials)`` of an object, and the path of the request that reads
    it.
    """

    location: Callable[[ObjectStore, str, str | None], Location]
    path: Callable[[str], str]
    keys: Callable[[], Mapping[str, str]]  # of a Secret that opens it
    needs: tuple[str, ...]  # what the message about another Secret names
    expired: tuple[int, bytes] = (401, b'{"error": "the token has expired"}')

    def put(self, server: ObjectStore, name: str, content: bytes) -> None:
        """Let the object be there."""
        server.objects[self.path(name)] = content


def sha256(content: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def layer(name: str, content: bytes, media: str = "application/octet-stream") -> dict[str, Any]:
    """The descriptor of a file, as ORAS pushes it."""
    return {
        "mediaType": media,
        "digest": f"sha256:{sha256(content)}",
        "size": len(content),
        "annotations": {"org.opencontainers.image.title": name},
    }


def manifest(*layers: dict[str, Any]) -> bytes:
    """Of an artifact with these layers."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": f"sha256:{sha256(b'{}')}", "size": 2}
    content = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": empty,
        "layers": layers,
    }
    return json.dumps(content).encode()


class Registry(Kind):
    """Objects are layers of artifacts; paths are those of the layers. All of them are ``CONTENT``,
    because a path is a digest.
    """

    def put(self, server: ObjectStore, name: str, content: bytes) -> None:
        assert content == CONTENT
        push(server, "team/model", layer(name, content))
        server.objects[self.path(name)] = content


def push(server: ObjectStore, repository: str, *layers: dict[str, Any]) -> str:
    """Let a manifest be there; returns how a URI names it."""
    content = manifest(*layers)
    server.objects[f"/v2/{repository}/manifests/sha256:{sha256(content)}"] = content
    return f"{repository}@sha256:{sha256(content)}"


KINDS: dict[str, Kind] = {
    "s3": Kind(
        lambda server, name, secret: server.s3(f"models/{name}", secret),
        lambda name: f"/models/{name}",
        lambda: {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "sk-1", "AWS_SESSION_TOKEN": "st-1"},
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        expired=(400, b"<Error><Code>ExpiredToken</Code></Error>"),
    ),
    "gs": Kind(
        lambda server, name, secret: server.gs(f"models/{name}", secret),
        lambda name: f"/models/{name}",
        lambda: {"GOOGLE_SERVICE_ACCOUNT_KEY": account()},
        ("GOOGLE_SERVICE_ACCOUNT_KEY", "private_key"),
        expired=(400, b"<Error><Code>ExpiredToken</Code></Error>"),
    ),
    "az": Kind(
        lambda server, name, secret: server.az(f"models/{name}", secret),
        lambda name: f"/account/models/{name}",
        lambda: {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"},
        ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
        expired=(
            403,
            b"<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>Signature not valid in the"
            b" specified time frame: Start [x] - Expiry [y]</AuthenticationErrorDetail></Error>",
        ),
    ),
    "http": Kind(
        lambda server, name, secret: server.http(f"models/{name}", secret),
        lambda name: f"/models/{name}",
        lambda: {"token": "tok-1"},
        ("token", "username", "password"),
    ),
    "hf": Kind(
        lambda server, name, secret: server.hf(f"org/model@{COMMIT}/{name}", secret),
        lambda name: f"/org/model/resolve/{COMMIT}/{name}",
        lambda: {"token": "hf_1"},
        ("token",),
    ),
    "oci": Registry(
        lambda server, name, secret: server.oci(
            f"team/model@sha256:{sha256(manifest(layer(name, CONTENT)))}/{name}", secret
        ),
        lambda name: f"/v2/team/model/blobs/sha256:{sha256(CONTENT)}",
        lambda: {"username": "reader-1", "password": "pw-1"},
        ("username", "password"),
    ),
}


def mounted(root: Path, keys: Mapping[str, str]) -> Path:
    """A Secret as the kubelet mounts it, below ``root``."""
    (root / SECRET).mkdir(parents=True, exist_ok=True)
    for key, value in keys.items():
        (root / SECRET / key).write_text(value + "\n")
    return root
