"""What people and other programs do to objects in the middle of a rollout."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]

from chaos import ChaosError, NotNowError
from chaos.arena import NAMESPACE, Arena, Subject
from chaos.recorder import GRPC, HTTP
from chaos.traffic import KILLED, ROUTELESS, Outage, Window
from chaos.truth import is_ready
from demo import DemoError
from demo.client import pb2, stubs
from modelrollout.api import names
from modelrollout.resources.hardening import KEY_HEADER

PAUSED_SECONDS = 22.0  # beyond the Lease's 15, so that another one leads by then
ENDPOINT_LAG_SECONDS = 2.0  # a killed pod leaves the gateway's list within this long
ROUTELESS_SECONDS = 2.0  # a deleted route must be back within this long
TAKE_UP_SECONDS = 0.5  # the gateway has a new route after this long
BACK_SECONDS = 45.0  # of a side whose pods were all killed, or scaled away, one is ready within this long
ZERO_SECONDS = 5.0  # a ModelDeployment stays at zero replicas
ADMISSION = ("validatingadmissionpolicybindings", "validatingadmissionpolicies")


def restart(part: str) -> Callable[[Arena, Subject], None]:
    def do(arena: Arena, subject: Subject) -> None:
        try:
            arena.stop_part(part)
        finally:  # also when the run is interrupted
            arena.start_part(part)

    return do


def stall(part: str, seconds: float) -> Callable[[Arena, Subject], None]:
    def do(arena: Arena, subject: Subject) -> None:
        arena.signal_part(part, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            arena.signal_part(part, signal.SIGCONT)

    return do


def delete(kind: str, name: Callable[[Arena, Subject], str], *more: str) -> Callable[[Arena, Subject], None]:
    def do(arena: Arena, subject: Subject) -> None:
        when_there(lambda: arena.kubectl("delete", kind, name(arena, subject), "--wait=false", *more))

    return do


def when_there(do: Callable[[], object], limit: float = 10) -> None:
    """Do it as soon as the object is there: the state that asks for it is written before it."""
    deadline = time.monotonic() + limit
    while True:
        try:
            do()
            return
        except DemoError as e:
            if "not found" not in str(e).lower() or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def delete_job(arena: Arena, subject: Subject) -> None:
    def do() -> None:
        revision = arena.candidate(subject)
        jobs = arena.cluster.jobs(
            NAMESPACE, f"{names.LABEL_NAME}={subject.name},{names.LABEL_COMPONENT}={names.COMPONENT_PREPARE}"
        )
        mine = [j["metadata"]["name"] for j in jobs if j["metadata"]["name"].startswith(revision)]
        if not mine:
            raise DemoError("Job not found yet")
        arena.kubectl("delete", "job", mine[0], "--wait=false")

    when_there(do)


def delete_route(arena: Arena, subject: Subject) -> None:
    """Requests have nowhere to go until it is back, and are counted apart for no longer than that
    may take.
    """
    before = {o["metadata"]["uid"] for o in arena.recorder.versions(HTTP, subject.name)}
    start = time.time()
    arena.kubectl("delete", HTTP, subject.name, "--wait=false")
    deadline = time.time() + ROUTELESS_SECONDS
    while time.time() < deadline and all(
        o["metadata"]["uid"] in before for o in arena.recorder.versions(HTTP, subject.name)
    ):
        arena.recorder.wait(0.05)
    subject.windows.append(Window(start, time.time() + TAKE_UP_SECONDS, ROUTELESS))


def revert_weights(arena: Arena, subject: Subject) -> None:
    """As a Git revert or a person would: stable has everything again, in both routes."""
    split = [(arena.stable(subject), 100)]
    for kind, port in ((HTTP, names.PORT_HTTP), (GRPC, names.PORT_GRPC)):
        refs = [
            {"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight}
            for revision, weight in split
        ]
        patch = [{"op": "replace", "path": "/spec/rules/0/backendRefs", "value": refs}]
        written = arena.kubectl(
            "patch", kind, subject.name, "--type=json", "-p", json.dumps(patch), "-o", "json"
        )
        subject.own.add(json.loads(written)["metadata"]["resourceVersion"])


def evict(whose: Callable[[Arena, Subject], str]) -> Callable[[Arena, Subject], None]:
    """One pod through the eviction API, as ``kubectl drain`` does it: the disruption budget may
    make it wait.
    """

    def do(arena: Arena, subject: Subject) -> None:
        revision = whose(arena, subject)
        deadline = time.monotonic() + 60
        while True:
            pod = arena.pods(revision)[-1]["metadata"]["name"]
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod, "namespace": NAMESPACE},
            }
            try:
                arena.kubectl(
                    "create",
                    "--raw",
                    f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction",
                    "-f",
                    "-",
                    stdin=json.dumps(body),
                )
                return
            except DemoError as e:
                if "disruption budget" not in str(e) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    return do


def kill_pod(whose: Callable[[Arena, Subject], str]) -> Callable[[Arena, Subject], None]:
    """One pod with no grace: what it was answering is lost, and is counted apart. One that
    is ready is left.
    """

    def do(arena: Arena, subject: Subject) -> None:
        revision = whose(arena, subject)
        ready = [p for p in arena.pods(revision) if is_ready(p)]
        if len(ready) < 2:
            raise NotNowError(f"{len(ready)} ready pods of {revision}: the fault would take the last one")
        start = time.time()
        arena.kubectl(
            "delete", "pod", ready[0]["metadata"]["name"], "--grace-period=0", "--force", "--wait=false"
        )
        subject.windows.append(Window(start, time.time() + ENDPOINT_LAG_SECONDS, KILLED))

    return do


def candidate(arena: Arena, subject: Subject) -> str:
    return arena.candidate(subject)


def stable(arena: Arena, subject: Subject) -> str:
    return arena.stable(subject)


def own_name(arena: Arena, subject: Subject) -> str:
    return subject.name


def new_spec(arena: Arena, subject: Subject) -> None:
    arena.next_version(subject)


def write_status(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Arena, Subject], None]:
    """Replace the status as it is at this moment; again when the operator was quicker."""

    def do(arena: Arena, subject: Subject) -> None:
        deadline = time.monotonic() + 20
        while True:
            live = arena.cluster.deployment(NAMESPACE, subject.name)
            live["status"] = change(live.get("status") or {})
            path = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/modeldeployments/{subject.name}/status"
            try:
                written = arena.kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(live))
                subject.own.add(json.loads(written)["metadata"]["resourceVersion"])
                return
            except DemoError as e:
                if "the object has been modified" not in str(e) or time.monotonic() > deadline:
                    raise

    return do


def emptied(status: dict[str, Any]) -> dict[str, Any]:
    return {}


def nonsense(status: dict[str, Any]) -> dict[str, Any]:
    """Times that are none, and a stage without what it needs."""
    rollout = {key: value for key, value in status["rollout"].items() if key != "revision"} | {
        "since": "yesterday",
        "stage": "Promote",
    }
    return {
        **status,
        "rollout": rollout,
        "stable": {**status["stable"], "since": "soon"},
        "handledVerbs": ["x"],
        "lastNumber": 0,
    }


def lost_rollout(status: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in status.items() if key != "rollout"}


def second_starts(arena: Arena) -> None:
    arena.second.start()


def second_ends(arena: Arena) -> None:
    arena.second.stop()


def leader_dies(arena: Arena, subject: Subject) -> None:
    arena.operator.kill(away=PAUSED_SECONDS)


def leader_pauses(arena: Arena, subject: Subject) -> None:
    arena.operator.pause()
    time.sleep(PAUSED_SECONDS)
    arena.operator.resume()


def rival_starts(arena: Arena) -> None:
    arena.rival.start()


def rival_ends(arena: Arena) -> None:
    arena.rival.stop()


def stop_prometheus(arena: Arena) -> None:
    arena.stop_part("prometheus")


def start_prometheus(arena: Arena) -> None:
    arena.start_part("prometheus")


def kill_side(whose: Callable[[Arena, Subject], str]) -> Callable[[Arena, Subject], None]:
    """All pods of a side with no grace: no pod can answer for it until one is ready again."""

    def do(arena: Arena, subject: Subject) -> None:
        revision, start = whose(arena, subject), time.time()
        selector = f"{names.LABEL_REVISION}={revision},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
        arena.kubectl("delete", "pods", "-l", selector, "--grace-period=0", "--force", "--wait=false")
        subject.outages.append(Outage(start, revision, True, start, ENDPOINT_LAG_SECONDS, BACK_SECONDS))

    return do


# --- replicas


def scale_to_zero(arena: Arena, subject: Subject) -> None:
    subject.scaled_at = time.time()
    arena.kubectl("scale", "mdep", subject.name, "--replicas=0")


def scale_back(arena: Arena, subject: Subject) -> None:
    """No request is answered until a pod of stable is ready."""
    time.sleep(ZERO_SECONDS)
    now, start = time.time(), subject.scaled_at
    arena.kubectl("scale", "mdep", subject.name, f"--replicas={subject.replicas}")
    revision, limit = arena.stable(subject), now - start + BACK_SECONDS
    subject.outages.append(Outage(start, revision, True, now, ENDPOINT_LAG_SECONDS, limit))


def scale_all_back(arena: Arena) -> None:
    for subject in arena.subjects:
        arena.kubectl("scale", "mdep", subject.name, f"--replicas={subject.replicas}")


# --- admission


def begin_refusing(arena: Arena) -> None:
    """The API server refuses server Deployments of ``up``, and server pods of ``down``."""
    for subject, group, resource in zip(arena.subjects, ("apps", ""), ("deployments", "pods"), strict=True):
        arena.cluster.apply(*_refusal(subject, group, resource))


def _refusal(subject: Subject, group: str, resource: str) -> Iterator[dict[str, Any]]:
    name = _refusal_name(subject)
    about = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    labels = {names.LABEL_NAME: subject.name, names.LABEL_COMPONENT: names.COMPONENT_SERVER}
    rule = {
        "apiGroups": [group],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": [resource],
    }
    constraints = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
        "objectSelector": {"matchLabels": labels},
        "resourceRules": [rule],
    }
    refuse = {"expression": "false", "message": f"chaos refuses {resource} of {subject.name}"}
    yield {
        **about,
        "kind": "ValidatingAdmissionPolicy",
        "spec": {"failurePolicy": "Fail", "matchConstraints": constraints, "validations": [refuse]},
    }
    yield {
        **about,
        "kind": "ValidatingAdmissionPolicyBinding",
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }


def _refusal_name(subject: Subject) -> str:
    return f"{NAMESPACE}-{subject.name}"


def end_refusing(arena: Arena, subject: Subject) -> None:
    for kind in ADMISSION:
        arena.kubectl("delete", kind, _refusal_name(subject), "--ignore-not-found")


def end_refusing_all(arena: Arena) -> None:
    for subject in arena.subjects:
        end_refusing(arena, subject)


# --- what manages a server


def try_model_control(arena: Arena, subject: Subject) -> None:
    """Load, unload and list the models of every ready server of both sides, by HTTP and gRPC at the
    pod's own address, as any client inside the cluster may try; without the pod's key, and with it.
    """
    revisions = {arena.stable(subject), arena.candidate(subject)}
    pods = [p for revision in revisions for p in arena.pods(revision) if is_ready(p)]
    if not pods:
        raise NotNowError(f"no ready server of {subject.name} to try model control on")
    for pod in pods:
        address, key = pod["status"]["podIP"], pod["metadata"]["uid"]
        opened = [
            f"{path} ({'with' if headers else 'without'} key): HTTP {status}"
            for path in ("load", "unload")
            for headers in ({}, {KEY_HEADER: key})
            if (status := _post(address, f"/v2/repository/models/{subject.name}/{path}", headers)) is not None
            and status < 400
        ]
        if (listed := _post(address, "/v2/repository/index", {})) is not None and listed < 400:
            opened.append(f"index: HTTP {listed}")
        if _unloads_by_grpc(address, subject.name):
            opened.append("unload by gRPC")
        if opened:
            raise ChaosError(f"pod {pod['metadata']['name']} obeys strangers: {', '.join(opened)}")


def _post(address: str, path: str, headers: dict[str, str]) -> int | None:
    """The status of the answer; None: the pod is gone meanwhile."""
    connection = http.client.HTTPConnection(address, names.PORT_HTTP, timeout=10)
    try:
        connection.request("POST", path, "{}", {"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _unloads_by_grpc(address: str, model: str) -> bool:
    with grpc.insecure_channel(f"{address}:{names.PORT_GRPC}") as channel:
        server = stubs.GRPCInferenceServiceStub(channel)
        try:
            server.RepositoryModelUnload(pb2.RepositoryModelUnloadRequest(model_name=model), timeout=10)
        except grpc.RpcError:
            return False
    return True
