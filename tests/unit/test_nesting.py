"""How deep JSON and YAML of others may be is the same whatever the recursion limit of the process:
one that has compiled a rule of CEL has another.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from modelrollout import nesting
from modelrollout.analysis.providers.prometheus import client
from modelrollout.analysis.recording import read_looks
from modelrollout.api import names
from modelrollout.cli.manifests import documents, edit
from modelrollout.controller.lookups.host_names import claims_of
from modelrollout.feedback import items
from modelrollout.kube import decoding
from modelrollout.optimizer.formats import keras
from modelrollout.optimizer.formats.exported_program import checked_program
from modelrollout.optimizer.passthrough import devices, vllm
from modelrollout.optimizer.store import oci_layers, signature
from modelrollout.optimizer.store.artifact import parse_report
from modelrollout.triton.config import pb
from tests.unit.optimizer.torch_files import program

# The first is read by all, the others by none. Python's own reader of JSON gets to 900 or 2,400,
# that of YAML to 300 or 800.
SHALLOW, DEEP = 50, (nesting.MAX_DEPTH, 700, 1200, 2000, 5000)
DEEP_YAML = (nesting.MAX_DEPTH, 400, 700)
KEY = ec.generate_private_key(ec.SECP256R1())


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def of_feedback(deep: str, _: Path) -> None:
    items.parse(
        f'{{"items":[{{"namespace":"ml","name":"digits","version":1,"id":"a","correct":true}}],"x":{deep}}}'.encode()
    )


def signed(deep_inside: str, deep: str) -> None:
    payload = json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "predicateType": "https://model_signing/signature/v1.0",
            "predicate": {"resources": [{"algorithm": "sha256", "digest": "0" * 64}]},
            "x": 0,
        }
    ).replace('"x": 0', f'"x": {deep_inside}')
    kind = "application/vnd.in-toto+json"
    whole = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload.encode())
    by = KEY.sign(whole, ec.ECDSA(hashes.SHA256()))
    bundle = {
        "dsseEnvelope": {
            "payloadType": kind,
            "payload": base64.b64encode(payload.encode()).decode(),
            "signatures": [{"sig": base64.b64encode(by).decode()}],
        },
        "x": 0,
    }
    content = json.dumps(bundle).replace('"x": 0', f'"x": {deep}').encode()
    signature.check(content, KEY.public_key(), "0" * 64)


def of_a_report(deep: str, _: Path) -> None:
    parse_report(f'{{"x":{deep}}}'.encode(), "x")


def of_a_registry(deep: str, _: Path) -> None:
    layer = {"digest": f"sha256:{'0' * 64}", "mediaType": "x"}
    oci_layers.layers_of(f'{{"layers":[{json.dumps(layer)}],"x":{deep}}}'.encode())


def of_a_program(deep: str, _: Path) -> None:
    checked_program(json.dumps(program() | {"x": 0}).replace('"x": 0', f'"x": {deep}').encode())


def of_containers(deep: str, _: Path) -> None:
    container = '{"type": "builtins.tuple", "children_spec": ' + deep + "}"
    checked_program(json.dumps(program(container=container)).encode())


def of_keras(deep: str, folder: Path) -> None:
    with h5py.File(folder / "m.h5", "w") as file:
        file.attrs["model_config"] = f'{{"x":{deep}}}'
    assert not list(keras._configuration(folder / "m.h5", zipped=False))


def of_an_engine(deep: str, folder: Path) -> None:
    (folder / "model.json").write_text(f'{{"x":{deep}}}')
    vllm._read(folder / "model.json")


def of_a_divided_engine(deep: str, folder: Path) -> None:
    sizes = '{"mapping":{"tp_size":2,"pp_size":1}}'
    (folder / "config.json").write_text(f'{{"pretrained_config":{sizes},"x":{deep}}}')
    if not devices.division("Python", {"config.json": folder / "config.json"}, pb.ModelConfig()):
        raise ValueError("nothing is known of it")


def of_a_lease(deep: str, _: Path) -> None:
    about = {
        names.ANNOTATION_HOSTNAME: "a.example.com",
        names.ANNOTATION_SHARED_WITH: f'[{{"holder":"ml/other/u"}},{deep}]',
    }
    metadata = {"name": names.host_lease("a.example.com"), "annotations": about}
    claims = claims_of({"metadata": metadata, "spec": {"holderIdentity": "ml/digits/u"}})
    if len(claims) == 1:
        raise ValueError("the further claims are none that can be read")


def of_a_refused_query(deep: str, _: Path) -> None:
    if not client._error_text(f"""HTTP (b'{{"error":"no","x":{deep}}}')"""):
        raise ValueError("no text")


def of_a_recording(deep: str, _: Path) -> None:
    list(read_looks([f'{{"at":"2026-11-22T12:00:00Z","readings":{{}},"x":{deep}}}']))


def of_the_api_server(deep: str, _: Path) -> None:
    raw = f'{{"metadata":{{"name":"a"}},"spec":{{"x":{deep}}}}}'.encode()
    decoding.object_of(decoding.parse(raw), len(raw))


def of_a_manifest(deep: str, folder: Path) -> None:
    (folder / "m.yaml").write_text(f"apiVersion: v1\nkind: ConfigMap\nx: {deep}\n")
    documents.read([folder / "m.yaml"])


def of_a_manifest_to_edit(deep: str, _: Path) -> None:
    text = (
        f"apiVersion: {names.GROUP}/v1alpha1\nkind: ModelDeployment\nmetadata: {{name: digits}}\n"
        f"spec:\n  model:\n    uri: s3://a/m\nx: {deep}\n"
    )
    assert edit.edit(text, edit.Change(uri="s3://a/n"))[0] == text.replace("a/m", "a/n")


READERS: dict[str, Callable[[str, Path], None]] = {
    "a bundle": lambda deep, _: signed("0", deep),
    "the statement in a bundle": lambda deep, _: signed(deep, "0"),
    "a report": of_a_report,
    "a registry": of_a_registry,
    "a program": of_a_program,
    "the containers of a program": of_containers,
    "Keras": of_keras,
    "an engine": of_an_engine,
    "an engine of TensorRT-LLM": of_a_divided_engine,
    "a Lease": of_a_lease,
    "a refused query": of_a_refused_query,
    "a recording": of_a_recording,
    "the API server": of_the_api_server,
}
YAML_READERS: dict[str, Callable[[str, Path], None]] = {
    "a manifest": of_a_manifest,
    "a manifest to edit": of_a_manifest_to_edit,
}
EVERY = {**READERS, **YAML_READERS}
TOO_DEEP = [(reader, depth) for reader in READERS for depth in DEEP] + [
    (reader, depth) for reader in YAML_READERS for depth in DEEP_YAML
]


@pytest.fixture(params=[1000, 2500])
def limit(request: pytest.FixtureRequest) -> Iterator[int]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(request.param)
    yield request.param
    sys.setrecursionlimit(before)


@pytest.mark.parametrize("reader", EVERY)
def test_what_may_be_nested_is_read(reader: str, limit: int, tmp_path: Path) -> None:
    EVERY[reader](nested(SHALLOW), tmp_path)


@pytest.mark.parametrize(("reader", "depth"), TOO_DEEP)
def test_what_is_nested_deeper_is_refused(reader: str, depth: int, limit: int, tmp_path: Path) -> None:
    with pytest.raises(Exception) as refusal:
        EVERY[reader](nested(depth), tmp_path)
    assert not isinstance(refusal.value, RecursionError)


@pytest.mark.parametrize("depth", DEEP)
def test_feedback_that_is_nested_says_so(depth: int, limit: int, tmp_path: Path) -> None:
    with pytest.raises(items.BadRequestError, match=f"nested more than {nesting.MAX_DEPTH} deep"):
        of_feedback(nested(depth), tmp_path)


def test_the_depth_is_that_of_lists_and_maps() -> None:
    value: Any = "x"
    for n in range(nesting.MAX_DEPTH):
        value = [value] if n % 2 else {"a": value}
    text = json.dumps(value)
    assert nesting.parse(text) == value
    with pytest.raises(nesting.TooDeepError):
        nesting.parse(f"[{text}]")


@pytest.mark.parametrize("text", ["", "{", "[1,]", b"\xff\xfe\x00", "9" * 5000])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError) as refusal:
        nesting.parse(text)
    assert not isinstance(refusal.value, nesting.TooDeepError)


@pytest.mark.parametrize("size", ["-" * 1999 + "1", "+".join("1" * 1000), "(" * 1000, "f(" * 600 + ")" * 600])
def test_a_size_of_a_program_is_judged_alike(size: str) -> None:
    """It is parsed as Python, whose parser has limits of its own."""
    outcomes = set()
    for most in (1000, 2500):
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(most)
        try:
            checked_program(json.dumps(program(batch=size)).encode())
            outcomes.add("read")
        except Exception as refusal:
            outcomes.add(str(refusal))
        finally:
            sys.setrecursionlimit(before)
    assert len(outcomes) == 1, outcomes
