"""Bundles of the real tool (model-signing): what it signs verifies here, and nothing else does."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from model_signing import hashing, signing

from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store.signature import check

MODEL = b"the model" * 1000
SHA = hashlib.sha256(MODEL).hexdigest()


class Desk:
    """Where a signer sits: a key, a model file, and a folder of models."""

    def __init__(self, folder: Path, curve: ec.EllipticCurve | None = None) -> None:
        self.key = ec.generate_private_key(curve or ec.SECP256R1())
        self.pem, self.bundle = folder / "key.pem", folder / "model.sig"
        form = serialization.PrivateFormat.PKCS8
        self.pem.write_bytes(
            self.key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        )
        self.model, self.folder = folder / "model.onnx", folder / "model"
        self.model.write_bytes(MODEL)
        (self.folder / "data").mkdir(parents=True)
        (self.folder / "model.onnx").write_bytes(MODEL)
        (self.folder / "data" / "weights").write_bytes(b"weights")

    def sign(self, what: Path | None = None, hashed: hashing.Config | None = None) -> bytes:
        """The bundle as the tool writes it."""
        config = signing.Config().use_elliptic_key_signer(private_key=self.pem)
        (config.set_hashing_config(hashed) if hashed else config).sign(what or self.model, self.bundle)
        return self.bundle.read_bytes()

    def refusal(
        self, bundle: bytes, sha256: str = SHA, key: ec.EllipticCurvePrivateKey | None = None
    ) -> tuple[str, str]:
        with pytest.raises(JobError) as error:
            check(bundle, (key or self.key).public_key(), sha256)
        return error.value.reason, error.value.message


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_what_the_tool_signs_verifies(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    desk = Desk(tmp_path, curve)
    check(desk.sign(), desk.key.public_key(), SHA)
    check(desk.sign(), desk.key.public_key(), f"sha256:{SHA}")


def test_another_file_and_another_key(desk: Desk) -> None:
    bundle = desk.sign()
    reason, message = desk.refusal(bundle, hashlib.sha256(MODEL + b"x").hexdigest())
    assert reason == "SignatureInvalid" and f"another file (sha256 {SHA})" in message
    reason, message = desk.refusal(bundle, key=ec.generate_private_key(ec.SECP256R1()))
    assert reason == "SignatureInvalid" and "not of the key" in message
    assert desk.refusal(bundle, key=ec.generate_private_key(ec.SECP384R1()))[0] == "SignatureInvalid"


def bent(
    bundle: bytes,
    change: Callable[[dict[str, Any]], None],
    statement: Callable[[dict[str, Any]], None] | None = None,
) -> bytes:
    report = json.loads(bundle)
    envelope = report["dsseEnvelope"]
    if statement:
        payload = json.loads(base64.b64decode(envelope["payload"]))
        statement(payload)
        envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    change(report)
    return json.dumps(report).encode()


def test_a_changed_bundle_is_refused(desk: Desk) -> None:
    bundle = desk.sign()
    other = hashlib.sha256(b"other").hexdigest()

    def signed(payload: dict[str, Any]) -> None:
        payload["predicate"]["resources"][0]["digest"] = other

    def hashed(payload: dict[str, Any]) -> None:
        payload["predicate"]["resources"][0]["algorithm"] = "md5"

    def unsigned(actual: dict[str, Any]) -> None:
        actual["dsseEnvelope"]["signatures"] = []

    def flipped(actual: dict[str, Any]) -> None:
        raw = bytearray(base64.b64decode(actual["dsseEnvelope"]["signatures"][0]["sig"]))
        raw[-1] ^= 1
        actual["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(raw).decode()

    def typed(actual: dict[str, Any]) -> None:
        actual["dsseEnvelope"]["payloadType"] = "text/plain"

    statements = [bent(bundle, lambda _: None, change) for change in (signed, hashed)]
    for changed in statements + [bent(bundle, change) for change in (unsigned, flipped, typed)]:
        assert desk.refusal(changed, other)[0] == "SignatureInvalid"
        assert desk.refusal(changed)[0] == "SignatureInvalid"
    assert desk.refusal(bundle[: len(bundle) // 2])[0] == "SignatureMalformed"


def test_a_folder_is_not_a_file(desk: Desk) -> None:
    reason, message = desk.refusal(desk.sign(desk.folder))
    assert (
        reason == "SignatureMalformed"
        and "sign the model file itself (or the archive), not its folder" in message
    )


@pytest.mark.parametrize(
    "hashed",
    [
        hashing.Config().use_file_serialization(hashing_algorithm="blake2"),
        hashing.Config().use_file_serialization(hashing_algorithm="blake3"),
        hashing.Config().use_shard_serialization(),
    ],
    ids=["blake2", "blake3", "shards"],
)
def test_other_hashes_are_refused_by_name(desk: Desk, hashed: hashing.Config) -> None:
    reason, message = desk.refusal(desk.sign(hashed=hashed))
    assert reason == "SignatureMalformed" and "sign with hash sha256" in message


def test_a_certificate_is_refused_though_its_key_fits(desk: Desk, tmp_path: Path) -> None:
    """Who trusts a key has not said that a certificate's name, dates and chain need no look."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, desk.key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(desk.key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    config = signing.Config().use_certificate_signer(
        private_key=desk.pem, signing_certificate=path, certificate_chain=[path]
    )
    config.sign(desk.model, desk.bundle)
    reason, message = desk.refusal(desk.bundle.read_bytes())
    assert reason == "SignatureUnsupported" and "certificate" in message and "sign key" in message


def test_a_keyless_bundle_is_refused_as_such(desk: Desk) -> None:
    """Made offline, so without Fulcio's certificate in it; its form is that of Sigstore's bundle
    v0.3.
    """

    def keyless(actual: dict[str, Any]) -> None:
        actual["verificationMaterial"] = {
            "certificate": {"rawBytes": "MA=="},
            "tlogEntries": [{"logIndex": "1"}],
        }

    assert desk.refusal(bent(desk.sign(), keyless))[0] == "SignatureUnsupported"


def test_the_bundle_of_a_blob_is_refused_by_what_it_is(desk: Desk) -> None:
    """What `cosign sign-blob` writes: a Sigstore bundle without an envelope."""
    blob = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {},
        "messageSignature": {},
    }
    assert desk.refusal(json.dumps(blob).encode())[0] == "SignatureMalformed"
