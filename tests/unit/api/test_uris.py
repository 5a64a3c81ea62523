"""URIs are places and nothing else, wherever a user or a platform team writes one; and what older
ones carried is shown nowhere.
"""

from __future__ import annotations

import json
import logging
import re
import types
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from modelrollout.api import uris
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.api.v1alpha1.policy import RolloutPolicySpec
from modelrollout.config import ConfigError, OperatorConfig, PrometheusConfig, StoreConfig, load_config
from modelrollout.crdgen.kinds import MODEL_DEPLOYMENT, ROLLOUT_POLICY, crd
from modelrollout.telemetry import redaction

CARRYING = (
    "https://alice:hunter2@models.example.com/m.onnx",
    "https://hunter2@models.example.com/m.onnx",
    "s3://AKIA:hunter2@models/m.onnx",
    "s3://AKIA:hun/ter2hunter2@models/m.onnx",
    "s3://AKIA:hunter2?@models/m.onnx",
    "https://alice:hunter2@[2001:db8::1]:8443/m.onnx",
    "https://models.example.com/m.onnx?X-Amz-Signature=hunter2",
    "https://models.example.com/m.onnx?sig=a@hunter2",
    "https://models.example.com/m.onnx#hunter2",
    "https://models.example.com?hunter2",
    "s3://models/m.onnx?hunter2",
)
PLAIN = (
    "s3://models/digits/v7/model.onnx",
    "s3://models/a@b/m.onnx",
    "s3://models/a:b/m.onnx",
    "https://models.example.com/@team/m.onnx",
    "https://models.example.com:8443/m%3Fx.onnx",
    "http://[2001:db8::1]:8080/m.onnx",
    "http://[2001:db8::1]/m.onnx",
    "https://models.example.com/",
    f"hf://org/model@{'0' * 40}/m.onnx",
    f"oci://registry.example.com:5000/team/model@sha256:{'0' * 64}/m.onnx",
)
# Texts that may hold anything, by the last word of their path: nothing is fetched from there. A new
# one is either a place, and then it is a Uri (a SourcePrefix, a StoreUri), or it is named here.
FREE = {
    ModelDeploymentSpec: {
        "lineage",
        "annotations",
        "labels",
        "slices",
        "args",
        "command",
        "image",
        "value",
        "query",
        "name",
        "nodeSelector",
        "output",
    },
    RolloutPolicySpec: {"query", "reason", "schedule", "timezone", "matchLabels", "namespaceLabels"},
    OperatorConfig: {
        # PromQL of gatewayMetrics.custom
        *("requests", "errors", "clientErrors", "refusedRequests", "slow"),
        *(
            "name",
            "region",
            "secretName",
            "readSecretName",
            "provider",
            "namespaces",
            "tokenFile",
            "usernameFile",
            "passwordFile",
            "headerFiles",
            "caFile",
        ),
        *("optimizer", "trainer", "trees", "tensorflow", "pytorch", "triton"),
    },
}
PLACES = {ModelDeploymentSpec: 13, RolloutPolicySpec: 4, OperatorConfig: 7}


@pytest.mark.parametrize("uri", CARRYING)
def test_what_carries_more_is_seen_and_masked(uri: str) -> None:
    assert uris.carries_more(uri)
    shown = redaction.mask_uri(uri)
    assert "hunter2" not in shown and "***" in shown
    assert "models" in shown or "2001:db8::1" in shown
    assert redaction.mask_uris(f"spec.model.uri: {uri}; correct it") == f"spec.model.uri: {shown}; correct it"


@pytest.mark.parametrize("uri", PLAIN)
def test_what_is_a_place_stays_as_it_is(uri: str) -> None:
    assert not uris.carries_more(uri)
    assert redaction.mask_uri(uri) == uri
    assert redaction.mask_uris(f"({uri}), '{uri}'.") == f"({uri}), '{uri}'."


@pytest.mark.parametrize(
    ("repository", "good"),
    [
        *((r, True) for r in ("a", "team/model", "te.am/my_model", "a__b/c---d", "1/2/3")),
        *((r, False) for r in ("team/..", "..", "team/../other", "team/.", "team//m", "/m", "team/", "a..b")),
        *((r, False) for r in ("Team/m", "team/-m", "team/m-", "team/%2e%2e", "a___b")),
    ],
)
def test_a_repository_is_written_as_registries_know_it(repository: str, good: bool) -> None:
    """So that no part of it is a way out of the prefix that holds it."""
    uri = f"oci://registry.example.com/{repository}@sha256:{'0' * 64}"
    for text in (uri, f"{uri}/m.onnx"):
        assert bool(re.search(uris.PATTERN, text)) is good


@pytest.mark.parametrize("scheme", uris.STORE_KINDS)
def test_no_source_of_a_policy_holds_all_of_a_scheme(scheme: str) -> None:
    for prefix in (f"{scheme}://", f"{scheme}:///", f"{scheme}:///a"):
        with pytest.raises(ValidationError):
            RolloutPolicySpec.model_validate({"allowedSources": {"models": [prefix]}})
    assert RolloutPolicySpec.model_validate({"allowedSources": {"models": [f"{scheme}://a"]}})


SECRET = st.text(
    st.characters(codec="utf-8", blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12
).map(lambda s: f"~{s}~")


@given(
    SECRET,
    st.sampled_from(
        [
            "https://{}@h.example/m",
            "s3://key:{}@b/k",
            "https://h.example/m?{}",
            "https://h.example/m#{}",
            "https://u:{}@h.example:8/m?{}",
        ]
    ),
)
def test_nothing_of_it_is_shown(secret: str, form: str) -> None:
    # that is a host and a path (RFC 3986, 3.2), as in https://host/@team/m.onnx
    assume(not (form.startswith("https://{}@") and "/" in secret))
    uri = form.replace("{}", secret)
    assert secret not in redaction.mask_uri(uri)
    masked = json.loads(redaction.mask_uris(json.dumps({"message": f"said {uri}", "next": 1})))
    assert masked["next"] == 1
    assert secret not in masked["message"]


@given(st.text(max_size=200))
def test_any_text_is_masked_once(text: str) -> None:
    once = redaction.mask_uris(text)
    assert redaction.mask_uris(once) == once


def leaves(kind: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every text in a type: its path, and its type with all constraints."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, *more = args
        for where, actual in leaves(base, path):
            yield where, Annotated[(actual, *more)] if base is str else actual
    elif origin in (Union, types.UnionType):
        for part in args:
            yield from leaves(part, path)
    elif origin in (list, tuple):
        yield from leaves(args[0], f"{path}[]")
    elif origin is dict:
        yield from leaves(args[1], f"{path}{{}}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            annotated = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            yield from leaves(annotated, f"{path}.{field.alias or name}")
    elif kind is str:
        yield path, str
    elif origin is not Literal:
        assert kind in (int, float, bool, Fraction, types.NoneType, Any), (path, kind)


def taken(kind: Any, text: str) -> bool:
    try:
        TypeAdapter(kind).validate_python(text)
    except ValidationError:
        return False
    return True


def last(path: str) -> str:
    return re.sub(r"[\[\]{}]", "", path.rpartition(".")[2])


@pytest.mark.parametrize("kind", FREE, ids=lambda kind: kind.__name__)
def test_every_text_that_can_be_a_uri_refuses_what_carries_more(kind: type[BaseModel]) -> None:
    """Also those of fields that do not exist yet."""
    texts = list(leaves(kind, ""))
    for carrying in CARRYING:
        free = {path for path, leaf in texts if taken(leaf, carrying)}
        assert {last(path) for path in free} <= FREE[kind]
    named = [
        path
        for path, _ in texts
        if re.search(r"(?i)ur[il]|endpoint|redirects|sources\.(models|data|code|followUnsigned)", path)
    ]
    assert len(named) == PLACES[kind]
    assert not {last(path) for path in named} & FREE[kind]


@pytest.mark.parametrize("kind", [MODEL_DEPLOYMENT, ROLLOUT_POLICY], ids=lambda kind: kind.kind)
def test_the_definitions_say_it_with_the_same_words(kind: Any) -> None:
    actual = []

    def walk(node: dict[str, Any]) -> None:
        actual.extend(r for r in node.get("x-kubernetes-validations", []) if "must not carry" in r["message"])
        for child in node.get("properties", {}).values():
            walk(child)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                walk(node[key])

    walk(crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])
    assert len(actual) == PLACES[kind.spec]
    for rule in actual:
        assert rule["message"] in (uris.INSTEAD, uris.PREFIX_INSTEAD)
        pattern = re.fullmatch(r"!self\.matches\('(.*)'\)", rule["rule"])
        assert pattern and pattern[1].replace("\\\\", "\\") == uris.CARRIES_MORE


ROOT = Path(__file__).parents[3]


def put(target: Any, path: list[str], uri: str) -> Iterator[str]:
    """Where the field was; every element of a list has its turn."""
    head, *rest = path
    if head.endswith("[]"):
        for i, inner in enumerate(target.get(head[:-2]) or []):
            if isinstance(inner, str):
                retained, target[head[:-2]][i] = inner, uri
                yield head
                target[head[:-2]][i] = retained
            else:
                yield from put(inner, rest, uri)
    elif rest:
        if isinstance(target.get(head), dict):
            yield from put(target[head], rest, uri)
    elif head in target:
        retained, target[head] = target[head], uri
        yield head
        target[head] = retained


def test_the_words_name_the_field_and_the_remedy_and_nothing_else() -> None:
    """As the operator says it of objects that were stored before: see observe._spec."""
    spec = json.loads(json.dumps(yaml.safe_load((ROOT / "examples/full.yaml").read_text())["spec"]))
    ModelDeploymentSpec.model_validate(spec)
    tried = 0
    for path, leaf in leaves(ModelDeploymentSpec, ""):
        for carrying in (
            CARRYING if not taken(leaf, CARRYING[0]) and taken(leaf, PLAIN[0]) and last(path) == "uri" else ()
        ):
            for _ in put(spec, path.strip(".").split("."), carrying):
                tried += 1
                with pytest.raises(ValidationError) as error:
                    ModelDeploymentSpec.model_validate(spec)
                (told,) = error.value.errors(include_input=False)
                assert told["msg"] == uris.INSTEAD and told["loc"][-1] == "uri"
                assert "hunter2" not in str(error.value) + told["msg"] + str(told["loc"])
    assert tried >= 8 * len(CARRYING)


@pytest.mark.parametrize("carrying", CARRYING)
def test_the_configuration_is_refused_without_repeating_it(carrying: str, tmp_path: Path) -> None:
    good: dict[str, Any] = {
        "stores": [
            {"name": "m", "uri": "https://models.example.com/", "redirectsTo": ["https://cdn.example.com/x/"]}
        ],
        "artifacts": {"name": "a", "uri": "s3://a", "endpoint": "https://s3.example.com"},
        "prometheus": [{"name": "p", "url": "http://prometheus:9090"}],
        "images": {"optimizer": "o", "triton": "t"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(good))
    assert load_config(path).stores[0].leads_to == (
        "https://models.example.com/",
        "https://cdn.example.com/x/",
    )
    fields = (
        ("stores", 0, "uri"),
        ("artifacts", "uri"),
        ("artifacts", "endpoint"),
        ("prometheus", 0, "url"),
        ("stores", 0, "redirectsTo", 0),
    )
    for *where, field in fields:
        bad: Any = json.loads(json.dumps(good))
        target = bad
        for step in where:
            target = target[step]
        target[field] = carrying
        path.write_text(yaml.safe_dump(bad))
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert ".".join(map(str, (*where, field))) in str(error.value)
        assert "hunter2" not in str(error.value) and error.value.__cause__ is None
    path.write_text(f"stores: [{{uri: '{carrying}'}}\n, ]]")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (
            {"uri": "s3://m", "redirectsTo": ["https://cdn.example.com/"]},
            "redirects of S3 are never followed",
        ),
        (
            {"uri": "https://m.example.com/", "redirectsTo": ["http://cdn.example.com/"], "allowHttp": True},
            "from https to http",
        ),
        ({"uri": "http://m.example.com/", "redirectsTo": ["http://cdn.example.com/"]}, "without allowHttp"),
        ({"uri": "acme://models/"}, "write s3://BUCKET/KEY or gs://BUCKET/KEY or "),
        ({"uri": "models"}, "write s3://BUCKET/KEY or gs://BUCKET/KEY or "),
        ({"uri": "az://models/"}, "write for example https://ACCOUNT.blob.core.windows.net"),
        ({"uri": "https://m.example.com/", "redirectsTo": ["cdn.example.com"]}, "pattern"),
        ({"uri": "https://m.example.com/", "redirectsTo": ["https://cdn.example.com"]}, "pattern"),
        ({"uri": "https://m.example.com/", "redirectsTo": ["https:///x"]}, "pattern"),
    ],
)
def test_where_a_store_may_lead(store: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        StoreConfig.model_validate({"name": "m", **store})
    assert words in str(error.value)


def test_a_password_of_prometheus_has_its_place() -> None:
    with pytest.raises(ValidationError) as error:
        PrometheusConfig(name="p", url="http://me:hunter2@prometheus:9090")
    assert "passwordFile" in str(error.value) and "hunter2" not in str(error.value)


def test_logs_are_masked() -> None:
    from modelrollout.telemetry import logs

    for carrying in CARRYING:
        record = logging.LogRecord("x", logging.INFO, "x.py", 1, "read %s now", (carrying,), None)
        for formatter in (logs.JsonLines(), logs._Text(), logs.JsonLines(redaction.redact_known)):
            text = formatter.format(record)
            assert "hunter2" not in text and "now" in text


def test_texts_of_strangers_are_masked_in_a_time_that_grows_with_their_length() -> None:
    """Each of these took hours: one object with a long key held up the operator for everybody."""
    size = 300_000
    assert redaction.mask_uris("a" * size) == "a" * size
    assert redaction.mask_uris("a." * size).endswith("a.")
    assert redaction.mask_uris("s3://" + "@" * size) == "s3://***"
    assert redaction.mask_uris("s3://" * 50_000).startswith("s3://")
    assert redaction.mask_uris("x" * size + "s3://u:p@bucket/x").endswith("s3://***@bucket/x")
