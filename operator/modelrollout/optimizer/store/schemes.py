"""The table of all kinds of stores, by the scheme of their URIs."""

from __future__ import annotations

from modelrollout.optimizer.store.azure_store import AZURE
from modelrollout.optimizer.store.backend import Scheme
from modelrollout.optimizer.store.gs_store import GS
from modelrollout.optimizer.store.hf_store import HF
from modelrollout.optimizer.store.http_store import HTTP
from modelrollout.optimizer.store.oci_store import OCI
from modelrollout.optimizer.store.s3_store import S3

SCHEMES: dict[str, Scheme] = {
    "s3": S3,
    "gs": GS,
    "az": AZURE,
    "abfs": AZURE,
    "http": HTTP,
    "https": HTTP,
    "hf": HF,
    "oci": OCI,
}
