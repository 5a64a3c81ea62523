"""Verifies that the holder of a key has signed the model, on its bytes and before parsing them.

The format is that of OpenSSF model signing (``model_signing sign key``): a Sigstore bundle whose
DSSE envelope holds an in-toto statement with the SHA-256 of the file. The package model-signing
itself is used by the tests only: 1.1.1 brings 50 MB in 25 packages (online verification, TUF,
requests), and does not import with the sigstore that it resolves to unless pyOpenSSL is added;
cryptography is 17 MB with what it needs.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from modelrollout import nesting
from modelrollout.contract.tasks import Signature
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.store.object_store import ObjectStore
from modelrollout.reasons import Reason

FIELD = "spec.model.signature"
LIMIT_BYTES = 1 << 20
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_SIGN = "sign it with: model_signing sign key MODEL --private_key KEY --signature MODEL.sig"


def load_key(signature: Signature) -> tuple[ec.EllipticCurvePublicKey, str]:
    """(the public key, SHA-256 of its DER form); raises JobError (SignerKeyInvalid,
    SignerKeyMissing).
    """
    path = Path(signature.key_file)
    if not path.is_file():
        raise bad_input(
            Reason.SIGNER_KEY_MISSING,
            f"{FIELD}.keySecretRef: the Secret or its key {path.name!r} is not there; create it in this"
            " namespace",
        )
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise bad_input(
            Reason.SIGNER_KEY_INVALID,
            f"{FIELD}.keySecretRef: key {path.name!r} is no public key in PEM form on the curve P-256, P-384"
            f" or P-521; {_SIGN}",
        )
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key, hashlib.sha256(der).hexdigest()


def verify(signature: Signature, key: ec.EllipticCurvePublicKey, sha256: str) -> None:
    """Raises JobError: SignatureMissing, those of ``check``, and those of the store."""
    store = ObjectStore(signature.location, f"{FIELD}.uri")
    try:
        content = b"".join(store.chunks(LIMIT_BYTES))
    except JobError as error:
        if error.reason == Reason.OBJECT_MISSING:
            raise bad_input(
                Reason.SIGNATURE_MISSING,
                f"{FIELD}: there is no {signature.location.uri}; {_SIGN}, and upload it",
            ) from None
        raise
    check(content, key, sha256)


def check(content: bytes, key: ec.EllipticCurvePublicKey, sha256: str) -> None:
    """The bundle ``content`` is of ``key`` and for the file with that SHA-256.

    Raises JobError: SignatureMalformed, SignatureUnsupported, SignatureInvalid.
    """
    try:
        bundle = nesting.parse(content)
        envelope, material = bundle["dsseEnvelope"], bundle.get("verificationMaterial") or {}
        certified = "certificate" in material or "x509CertificateChain" in material
        kind, payload = str(envelope["payloadType"]), base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"]]
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise _malformed("it is no Sigstore bundle with a DSSE envelope") from None
    # also where its key is the one in the Secret: nothing here checks its dates, its chain and its
    # name
    if certified:
        raise bad_input(
            Reason.SIGNATURE_UNSUPPORTED,
            f"{FIELD}: the signature is of a certificate or an identity (keyless), not of a key; {_SIGN}",
        )
    signed = b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)
    if not any(_is_of(key, one, signed) for one in signatures):
        raise bad_input(
            Reason.SIGNATURE_INVALID,
            f"{FIELD}: the signature is not of the key in keySecretRef, or was changed; {_SIGN}",
        )
    # From here on the payload is what the signer wrote.
    if kind != _PAYLOAD_TYPE:
        raise _malformed(f"its payload is {kind!r}, not {_PAYLOAD_TYPE}")
    if _digest(payload) != sha256.removeprefix("sha256:"):
        raise bad_input(
            Reason.SIGNATURE_INVALID,
            f"{FIELD}: the signature is of another file (sha256 {_digest(payload)}); {_SIGN}",
        )


def _is_of(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed, ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        return False
    return True


def _digest(payload: bytes) -> str:
    """SHA-256 of the one file that the statement is about."""
    try:
        statement: dict[str, Any] = nesting.parse(payload)
        if statement["_type"] != _STATEMENT or statement["predicateType"] != _PREDICATE:
            raise _malformed("its statement is not of model signing, version 1.0")
        (resource,) = statement["predicate"]["resources"]
        if resource["algorithm"] != "sha256":
            raise _malformed(f"it uses {resource['algorithm']!r}; sign with hash sha256")
        return str(resource["digest"])
    except (ValueError, KeyError, TypeError):
        raise _malformed(
            "its statement does not name one file; sign the model file itself (or the archive), not its"
            " folder"
        ) from None


def _malformed(what: str) -> JobError:
    return bad_input(Reason.SIGNATURE_MALFORMED, f"{FIELD}: the signature cannot be used: {what}; {_SIGN}")
