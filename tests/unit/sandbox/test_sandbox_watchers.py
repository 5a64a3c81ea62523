"""The two small programs that watch the API server, and the parsing of what the machine says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandbox import capacity
from sandbox.cluster import Record, dns_answers
from sandbox.configs import Options
from sandbox.discovery import Targets, target
from sandbox.paths import State
from sandbox.shell import WaitError, until


def pod(**changes: Any) -> dict[str, Any]:
    meta = {
        "name": "p",
        "namespace": "ns",
        "uid": "u1",
        "labels": {"modelrollout.dev/name": "digits", "modelrollout.dev/revision": "digits-1"},
        "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8002", "other": "left out"},
        **changes.pop("metadata", {}),
    }
    status = {
        "podIP": "10.0.0.1",
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
        **changes.pop("status", {}),
    }
    return {
        "metadata": meta,
        "spec": {"nodeName": "n", "containers": [{"ports": [{"containerPort": 8000}]}]},
        "status": status,
    }


def test_a_target_has_the_labels_of_prometheus_own_discovery() -> None:
    entry = target(pod())
    assert entry is not None
    assert entry["targets"] == ["10.0.0.1:8000"]
    labels = entry["labels"]
    assert labels["__meta_kubernetes_namespace"] == "ns"
    assert labels["__meta_kubernetes_pod_label_modelrollout_dev_revision"] == "digits-1"
    assert labels["__meta_kubernetes_pod_annotation_prometheus_io_port"] == "8002"
    assert labels["__meta_kubernetes_pod_ready"] == "true"
    assert not any("other" in k for k in labels)


@pytest.mark.parametrize("changes", [{"metadata": {"annotations": {}}}, {"status": {"podIP": None}}])
def test_a_pod_that_does_not_ask_or_has_no_address_is_no_target(changes: dict[str, Any]) -> None:
    assert target(pod(**changes)) is None


def test_the_file_changes_only_when_the_targets_do(tmp_path: Path) -> None:
    file = tmp_path / "pods.json"
    targets = Targets(file)
    targets.update("ADDED", pod())
    targets.write()
    first = file.stat().st_ino
    targets.update("MODIFIED", pod())
    targets.write()
    assert file.stat().st_ino == first
    targets.update("DELETED", pod())
    targets.write()
    assert json.loads(file.read_text()) == []


@pytest.mark.parametrize(
    ("status", "want"),
    [
        ({}, True),
        ({"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "0"}}, True),
        ({"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "8"}}, False),
    ],
)
def test_capacity_is_patched_only_when_it_is_wrong(status: dict[str, Any], want: bool) -> None:
    assert capacity.wrong({"status": status}, 8) is want


def test_a_record_survives_being_written_and_half_written(tmp_path: Path) -> None:
    state = State(tmp_path)
    record = Record(pid=1, start_time=2, slot=3, complete=False, created=4.0, options=Options(gpus=2))
    record.write(state)
    assert Record.read(state) == record
    state.record.write_text('{"pid": 1')
    assert Record.read(state) is None


def test_a_process_number_that_was_given_away_is_not_taken_for_the_init() -> None:
    assert not Record(pid=1, start_time=-1, slot=0, complete=True, created=0, options=Options()).alive


def test_waiting_names_what_did_not_come() -> None:
    with pytest.raises(WaitError, match="the moon: not within"):
        until("the moon", lambda: False, timeout=0.05, interval=0.01)


def test_dns_that_does_not_answer_is_an_error_not_a_yes() -> None:
    with pytest.raises(OSError):
        dns_answers("127.255.255.254", "kubernetes.default.svc.cluster.local")
