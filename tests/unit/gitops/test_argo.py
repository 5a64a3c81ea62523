"""What Argo CD is started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from gitops import argo
from gitops.story import ARGO_NAMESPACE
from sandbox.shell import free_ports

PORTS = {
    name: 1000 + n
    for n, name in enumerate(("redis", "repo", "repo-metrics", "controller", "sets", "probe", "hook"))
}


def test_only_argocd_cm_gets_the_customizations() -> None:
    objects = [
        {"kind": "ConfigMap", "metadata": {"name": "argocd-cm"}, "data": {"a": "b"}},
        {"kind": "ConfigMap", "metadata": {"name": "argocd-rbac-cm"}},
        {"kind": "Secret", "metadata": {"name": "argocd-secret"}},
    ]
    made = argo.configured(objects, {"resource.customizations.health.x": "return"})
    assert made[0]["data"] == {"a": "b", "resource.customizations.health.x": "return"}
    assert [o.get("data") for o in made[1:]] == [None, None]
    assert {o["metadata"]["namespace"] for o in made} == {ARGO_NAMESPACE}


def test_every_process_listens_on_ports_of_its_own_and_the_names_choose_the_program() -> None:
    commands = argo.commands(PORTS, Path("/tools"))
    order = list(commands)
    assert order[:2] == ["redis-server", "argocd-repo-server"], "the others need them"
    for name, words in commands.items():
        assert Path(words[0]).name == name
    assert "--persist-resource-health" in commands["argocd-application-controller"]
    said = [word.rpartition(":")[2] for words in commands.values() for word in words]
    assert {str(port) for port in PORTS.values()} <= set(said)


def test_nothing_goes_through_a_proxy_or_lies_outside_of_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    monkeypatch.setenv("http_proxy", "http://proxy.example")
    environment = argo.process_environment(tmp_path, tmp_path / "kubeconfig", tmp_path / "bin")
    assert not [key for key in environment if key.lower().endswith("_proxy")]
    for key in ("HOME", "TMPDIR", "ARGOCD_TLS_DATA_PATH", "ARGOCD_SSH_DATA_PATH", "ARGOCD_ASK_PASS_SOCK"):
        assert Path(environment[key]).is_relative_to(tmp_path)


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(7))) == 7
