"""The operator's configuration: what is allowed, and what is said about a file that cannot be
used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelrollout.api.uris import STORE_KINDS
from modelrollout.config import (
    ArtifactStoreConfig,
    ConfigError,
    ImagesConfig,
    NetworkPoliciesConfig,
    OperatorConfig,
    PrometheusConfig,
    StoreConfig,
    load_config,
)

MINIMAL = """
stores: [{name: models, uri: s3://models}]
artifacts: {name: artifacts, uri: s3://artifacts}
images: {optimizer: example/optimizer:1, triton: example/triton:1}
"""


def config(*stores: StoreConfig, prometheus: tuple[str, ...] = ()) -> OperatorConfig:
    return OperatorConfig(
        stores=list(stores) or [StoreConfig(name="models", uri="s3://models")],
        artifacts=ArtifactStoreConfig(name="artifacts", uri="s3://artifacts"),
        images=ImagesConfig(optimizer="o", triton="t"),
        prometheus=[PrometheusConfig(name=name, url=f"http://{name}") for name in prometheus],
    )


@pytest.mark.parametrize(
    "uri", ["s3://models/a", "s3://models/a/b.onnx", "s3://models//a", "s3://models/a..b"]
)
def test_a_store_holds_what_lies_under_its_prefix(uri: str) -> None:
    assert config().store_for(uri) is not None


@pytest.mark.parametrize(
    "uri",
    [
        "s3://models",
        "s3://models-2/a",
        "s3://other/a",
        "https://models/a",
        "s3://models/../other/a",
        "s3://models/a/..",
        "s3://models/a/..@b",
        "s3://models/%2e%2e/a",
        "S3://models/a",
    ],
)
def test_and_nothing_else(uri: str) -> None:
    assert config().store_for(uri) is None


def test_a_prefix_ends_at_a_separator_however_it_is_written() -> None:
    for uri in ("s3://models/team", "s3://models/team/"):
        store = StoreConfig(name="x", uri=uri)
        assert store.holds("s3://models/team/a") and not store.holds("s3://models/team-b/a")


def test_a_repository_holds_its_commits() -> None:
    pin = "0" * 40
    for uri in ("hf://org/model", "hf://org/model/"):
        store = StoreConfig(name="x", uri=uri)
        assert store.holds(f"hf://org/model@{pin}/m.onnx")
        assert not store.holds(f"hf://org/model-2@{pin}/m.onnx") and not store.holds(f"hf://org@{pin}/model")
    assert StoreConfig(name="x", uri="hf://org/").holds(f"hf://org/model@{pin}/m.onnx")
    assert not StoreConfig(name="x", uri="s3://models/a").holds("s3://models/a@b")


def test_a_repository_of_a_registry_holds_its_digests() -> None:
    pin = f"sha256:{'0' * 64}"
    store = StoreConfig(name="x", uri="oci://registry.example.com:5000/team/model")
    assert store.holds(f"oci://registry.example.com:5000/team/model@{pin}")
    assert store.holds(f"oci://registry.example.com:5000/team/model/small@{pin}/m.onnx")
    assert not store.holds(f"oci://registry.example.com:5000/team/model-2@{pin}")
    assert not store.holds(f"oci://registry.example.com/team/model@{pin}")
    assert not store.holds(f"oci://registry.example.com:5000/team/model/..@{pin}")
    assert not store.holds(f"oci://registry.example.com:5000/team/model/../other@{pin}")


@pytest.mark.parametrize("scheme", [s for s, kind in STORE_KINDS.items() if kind.on_host])
@pytest.mark.parametrize("place", ["", "/", "//", "/models", ":5000/", "[/", "h:99999/"])
def test_a_store_on_a_host_names_it(scheme: str, place: str) -> None:
    with pytest.raises(ValidationError, match="names no host"):
        StoreConfig(name="x", uri=f"{scheme}://{place}", allow_http=True)
    assert StoreConfig(name="x", uri=f"{scheme}://[2001:db8::1]:5000").name


@pytest.mark.parametrize("place", [":443/x", "h:99999/x", "[/x"])
def test_every_address_in_the_configuration_has_a_host(place: str) -> None:
    for fields in ({"endpoint": f"https://{place}"}, {"redirectsTo": [f"https://{place}"]}):
        with pytest.raises(ValidationError, match="no http"):
            StoreConfig.model_validate({"name": "x", "uri": "oci://registry.example.com", **fields})


def test_an_endpoint_says_how_it_is_asked() -> None:
    with pytest.raises(ValidationError, match="no http"):
        StoreConfig(name="x", uri="s3://models", endpoint="s3.example.com:9000")


def test_artifacts_lie_where_they_can_be_written() -> None:
    with pytest.raises(ValidationError, match="Hugging Face is only read"):
        ArtifactStoreConfig(name="a", uri="hf://org/")


def test_content_hosts_are_what_the_configuration_names() -> None:
    store = StoreConfig(name="x", uri="hf://org/", redirects_to=["https://cdn.example.com/"])
    assert store.leads_to == ("https://cdn.example.com/",)
    assert StoreConfig(name="x", uri="hf://org/").leads_to == ()
    with pytest.raises(ValidationError, match="without allowHttp"):
        StoreConfig(name="x", uri="hf://org/", redirects_to=["http://cdn.example.com/"])


def test_a_host_is_not_its_prefix() -> None:
    store = StoreConfig(name="x", uri="https://models.example.com")
    assert store.holds("https://models.example.com/a")
    assert not store.holds("https://models.example.com.evil.com/a") and not store.holds(
        "https://models.example.com@evil.com/a"
    )


def test_of_two_stores_the_closer_one_is_meant() -> None:
    wide, narrow = (
        StoreConfig(name="wide", uri="s3://models"),
        StoreConfig(name="narrow", uri="s3://models/team"),
    )
    assert (
        config(wide, narrow).store_for("s3://models/team/a")
        == narrow
        == config(narrow, wide).store_for("s3://models/team/a")
    )
    assert config(wide, narrow).store_for("s3://models/a") == wide


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"headerFiles": {"Host": "/f"}}, "host is written by the client itself"),
        ({"headerFiles": {"X-Team": "/f", "x-team": "/g"}}, "there twice"),
        ({"headerFiles": {"Authorization": "/f"}, "tokenFile": "/t"}, "Authorization is there already"),
        ({"headerFiles": {"X Team": "/f"}}, "pattern"),
        ({"headerFiles": {"X-Team\n": "/f"}}, "pattern"),
        ({"caFile": "/ca", "url": "http://p"}, "no https://"),
    ],
)
def test_headers_and_authorities_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PrometheusConfig.model_validate({"name": "main", "url": "https://p"} | fields)
    good = {"headerFiles": {"Authorization": "/f", "X-Scope-OrgID": "/g"}, "caFile": "/ca"}
    made = PrometheusConfig.model_validate({"name": "main", "url": "https://p"} | good)
    assert made.header_files == good["headerFiles"]


def test_prometheus_by_name_and_the_first_by_default() -> None:
    made = config(prometheus=("main", "other"))
    assert [p.name for n in (None, "other") if (p := made.provider_for(n))] == ["main", "other"]
    assert made.provider_for("nobody") is None and config().provider_for(None) is None


def test_the_smallest_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(MINIMAL)
    made = load_config(path)
    assert made.workers == 4 and made.drain.pre_stop_seconds == 10 and made.namespaces == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL + "wokers: 3\n", "wokers"),
        (MINIMAL + "workers: 0\n", "workers"),
        (MINIMAL.replace("s3://models", ""), "stores"),
        ("stores: []\n", "artifacts"),
        ("", "dictionary"),
        ("a: [", "config.yaml"),
        (MINIMAL + "resyncSeconds: 0\n", "resyncSeconds"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_config(path)
    assert said in str(e.value) and str(path) in str(e.value)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


# --- NetworkPolicies

PEERS = (
    "proxies: {namespaces: [gateways]}, prometheus: {addresses: [10.0.0.9]}, stores: [{addresses:"
    " [10.20.0.0/24]}]"
)


def policies(tmp_path: Path, words: str) -> NetworkPoliciesConfig:
    (tmp_path / "config.yaml").write_text(f"{MINIMAL}networkPolicies: {{{words}}}\n")
    config = load_config(tmp_path / "config.yaml").network_policies
    assert config is not None
    return config


def test_where_policies_are_written(tmp_path: Path) -> None:
    assert config().network_policies is None
    everywhere = policies(tmp_path, f"mode: Write, {PEERS}")
    assert everywhere.written_in("ml") and everywhere.prometheus.addresses == ["10.0.0.9/32"]
    some = policies(tmp_path, f"mode: Write, namespaces: [ml], {PEERS}")
    assert some.written_in("ml") and not some.written_in("shop")
    assert not policies(tmp_path, "mode: Remove").written_in("ml"), "it needs to know no peer"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mode: Write", "proxies, prometheus, stores: without an entry"),
        (f"mode: Write, {PEERS}".replace("gateways", ""), "proxies"),
        (f"mode: On, {PEERS}", "mode"),
        (f"mode: Write, {PEERS}".replace("gateways", "Gateways"), "proxies.namespaces.0"),
        (
            f"mode: Write, {PEERS}".replace("10.20.0.0/24", "10.20.0.1/24"),
            "'10.20.0.1/24' is not an address range",
        ),
        (
            f"mode: Write, {PEERS}".replace("10.20.0.0/24", "s3.example.com"),
            "'s3.example.com' is not an address range",
        ),
        (f"mode: Write, {PEERS}".replace("10.20.0.0/24", "'::ffff:169.254.169.254'"), "write it as IPv4"),
        (
            f"mode: Write, {PEERS}".replace("10.20.0.0/24", ""),
            "no peer is listed; give namespaces or addresses",
        ),
        (f"mode: Write, {PEERS}, dns: {{namespaces: [kube-system], ports: []}}", "dns.ports"),
        (f"mode: Write, {PEERS}, dns: {{addresses: [169.254.20.10], ports: [0]}}", "dns.ports.0"),
        (f"mode: Write, {PEERS}, gateway: {{}}", "gateway"),
    ],
)
def test_policies_that_would_cut_off_what_was_forgotten_are_refused(
    tmp_path: Path, words: str, said: str
) -> None:
    """Before anything is written: the operator does not start."""
    with pytest.raises(ConfigError) as e:
        policies(tmp_path, words)
    assert said in str(e.value)
